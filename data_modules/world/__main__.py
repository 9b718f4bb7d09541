"""``python -m data_modules.world preview [FILE] [--seed N]``: a page of samples of every task."""

from __future__ import annotations

import argparse
import base64
import io
from pathlib import Path

import jinja2
from PIL import Image

from data_modules.world.preferences import make_example
from lit_msrl.prompts import render, target
from lit_msrl.types import TASK_TYPES, Media

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>The drawn world</title><style>
body{font:16px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;
  color:#222;background:#fff}
h2{margin:2.5rem 0 .5rem}
article{border-top:1px solid #ddd;padding:1rem 0;display:flex;gap:1.2rem;flex-wrap:wrap}
figure{margin:0} figcaption{color:#777;font-size:.8rem;max-width:200px}
img{image-rendering:pixelated;width:96px;border-radius:4px}
pre{white-space:pre-wrap;margin:0;flex:1 1 340px;font:14px/1.5 ui-monospace,monospace}
em{color:#777;font-style:normal}
@media(prefers-color-scheme:dark){body{background:#161616;color:#ddd}article{border-color:#333}}
</style><h1>The drawn world</h1><p>Seeded, unlimited preferences. What follows are training examples of seed
{{ seed }}, as a hasty annotator saw them: below each request, the rationale that supervised fine-tuning
imitates. Where the annotator's verdict is wrong, it says so.</p>
{% for task, cards in tasks %}<h2>{{ task }}</h2>{% for card in cards %}<article>
{% for medium in card.media %}<figure>
{% for uri in medium.uris %}<img src="{{ uri }}" alt="frame"> {% endfor %}
<figcaption>{{ medium.caption }}</figcaption></figure>{% endfor %}<pre>{{ card.request }}

<em>{{ card.target }}</em>{% if card.fooled %}
<em>(wrong: the better candidate is {{ card.label }})</em>{% endif %}</pre></article>{% endfor %}
{% endfor %}</html>"""


def page(seed: int = 0, count: int = 4) -> str:
    """The page, ``count`` samples per task."""
    tasks = [(task, [_card(task, index, seed) for index in range(count)]) for task in TASK_TYPES]
    return jinja2.Environment(autoescape=True).from_string(PAGE).render(tasks=tasks, seed=seed)


def _card(task, index: int, seed: int) -> dict:
    example = make_example(task, index, seed=seed, split="train", annotators="hasty")
    prompt = render(example, style="compact")
    captions = example.captions[::-1] if prompt.swapped and example.is_generation else example.captions
    media = [
        {"uris": _uris(m), "caption": caption} for m, caption in zip(prompt.media, captions, strict=True)
    ]
    assert example.rationale is not None
    fooled = example.rationale.preferred != example.winner
    request = prompt.text.replace("\ufffc", "[picture]" if not example.is_video else "[clip]")
    return {
        "media": media,
        "request": request,
        "target": target(prompt),
        "fooled": fooled,
        "label": prompt.label,
    }


def _uris(media: Media) -> list[str]:
    return [_uri(frame) for frame in media.frames]


def _uri(frame: Image.Image) -> str:
    buffer = io.BytesIO()
    frame.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    """Parse the command line and write the page."""
    parser = argparse.ArgumentParser(prog="python -m data_modules.world", description=__doc__)
    parser.add_argument("what", choices=["preview"])
    parser.add_argument("file", nargs="?", default="outputs/world.html")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    file = Path(options.file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page(options.seed), encoding="utf-8")
    print(f"Samples of every task: {file}")


if __name__ == "__main__":
    main()
