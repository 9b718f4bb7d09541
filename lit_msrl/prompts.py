"""What the judge is shown and the language it answers in: render an example, write and parse judgements.

A judgement is a sequence of tags, fixed by the task and the view (paper, section 3):

=========  ==================================================================
view       tags
=========  ==================================================================
text       ``<think> <answer>``
caption    ``<type> <think> <answer>``
visual     ``<type> <caption> <think> <answer>``
=========  ==================================================================
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import jinja2

from lit_msrl.types import Letter, Media, PreferenceExample, TaskType

View = Literal["caption", "visual"]
Style = Literal["compact", "full"]
MEDIA_MARK = "\ufffc"  # one per medium in `JudgingPrompt.text`; "object replacement character"
_TAG = re.compile(r"<(/?)(type|caption|think|answer)>")


@dataclass(frozen=True)
class JudgingPrompt:
    """An example as the judge sees it.

    Attributes:
        example: Where it comes from.
        swapped: Candidate 2 is shown as A.
        text: The user turn; each ``MEDIA_MARK`` stands for the next of ``media``.
        media: Pictures and clips in the order of their marks.
        tags: The judgement's grammar, in order.
        label: The letter of the better candidate; ``None`` for a tie.
    """

    example: PreferenceExample
    swapped: bool
    text: str
    media: tuple[Media, ...]
    tags: tuple[str, ...]
    label: Letter | None

    @property
    def task_type(self) -> TaskType:
        """The example's task type."""
        return self.example.task_type


@dataclass(frozen=True)
class Judgement:
    """A completion, read strictly.

    Attributes:
        well_formed: The whole text is exactly the expected tags, each once, in order, none empty,
            with only white space between them.
        answer: The verdict, when the text ends in the one ``<answer>`` it has and that holds A or B.
        type: The content of a leading, single ``<type>``, lower case, ``_`` and ``-`` as spaces.
        sections: Content by tag; empty unless ``well_formed``.
    """

    well_formed: bool
    answer: Letter | None
    type: str | None
    sections: dict[str, str]


def shown_first(example_id: str, seed: int = 0) -> bool:
    """Whether candidate 2 is shown first, by a seeded hash of the id: a coin every process tosses alike."""
    digest = hashlib.blake2b(f"{seed}:{example_id}".encode(), digest_size=1).digest()
    return bool(digest[0] & 1)


def grammar(task_type: TaskType, view: View) -> tuple[str, ...]:
    """The tags a judgement of this task must consist of.

    Example:
        >>> grammar("image generation", "visual")
        ('type', 'caption', 'think', 'answer')
    """
    if task_type == "text":
        return ("think", "answer")
    return ("type", "think", "answer") if view == "caption" else ("type", "caption", "think", "answer")


def render(
    example: PreferenceExample, *, view: View = "visual", style: Style = "full", swapped: bool | None = None
) -> JudgingPrompt:
    """Show an example to the judge.

    Args:
        example: The preference to be judged.
        view: Evidence as ``caption`` or as pixels (``visual``); text tasks look the same in both.
        style: ``full`` is the paper's instruction; ``compact`` asks the same in few words, for tiny models.
        swapped: Show candidate 2 as A; by default the seeded hash of the id decides.

    Raises:
        ValueError: The view needs captions or media that the example lacks.
    """
    _require_evidence(example, view)
    swapped = shown_first(example.id) if swapped is None else swapped
    turn = (lambda pair: pair[::-1]) if swapped and example.is_generation else (lambda pair: pair)
    media = turn(example.media) if view == "visual" else ()
    evidence = [MEDIA_MARK] * len(media) if media else [_clean(c) for c in turn(example.captions)]
    candidates = evidence if example.candidates is None else [_clean(c) for c in example.candidates]
    if swapped and example.candidates is not None:
        candidates = candidates[::-1]
    tags = grammar(example.task_type, view)
    text = _template(style).render(
        example=example, prompt=_clean(example.prompt), evidence=evidence, a=candidates[0], b=candidates[1],
        tags=tags, view=view,
    )  # fmt: skip
    label = None if example.winner == "tie" else letter(example.winner, swapped)
    return JudgingPrompt(example, swapped, text.strip(), tuple(media), tags, label)


def render_candidate(
    example: PreferenceExample, candidate: Literal[1, 2], *, view: View = "visual"
) -> tuple[str, tuple[Media, ...]]:
    """Show one candidate alone, as a discriminative reward model reads it: the user turn and its media.

    Raises:
        ValueError: The view needs captions or media that the example lacks.
    """
    _require_evidence(example, view)
    shown = slice(candidate - 1, candidate) if example.is_generation else slice(None)
    media = example.media[shown] if view == "visual" else ()
    text = _template("candidate").render(
        example=example, prompt=_clean(example.prompt), view=view,
        evidence=[MEDIA_MARK] * len(media) if media else [_clean(c) for c in example.captions[shown]],
        candidate=None if example.candidates is None else _clean(example.candidates[candidate - 1]),
    )  # fmt: skip
    return text.strip(), tuple(media)


def letter(candidate: Literal[1, 2], swapped: bool) -> Letter:
    """The letter under which a candidate is shown.

    Example:
        >>> letter(1, swapped=False), letter(1, swapped=True)
        ('A', 'B')
    """
    return "A" if (candidate == 1) != swapped else "B"


def caption_section(prompt: JudgingPrompt) -> str:
    """The ``<caption>`` a judge should write: the example's captions, by letter where there are two.

    Raises:
        ValueError: The example has no captions.
    """
    captions = prompt.example.captions
    if not captions:
        raise ValueError(f"example {prompt.example.id!r} has no captions")
    if len(captions) == 1:
        return captions[0]
    first, second = captions[::-1] if prompt.swapped else captions
    return f"A: {first} B: {second}"


def reasoning(prompt: JudgingPrompt) -> tuple[str, Letter]:
    """The annotator's reasons as ``<think>`` content, and the verdict they lead to.

    Raises:
        ValueError: The example has no rationale.
    """
    rationale = prompt.example.rationale
    if rationale is None:
        raise ValueError(
            f"example {prompt.example.id!r} of {prompt.example.source!r} has no rationale to imitate"
        )
    first, second = rationale.feedback[::-1] if prompt.swapped else rationale.feedback
    verdict = letter(rationale.preferred, prompt.swapped)
    comparison = rationale.comparison.replace("{1}", letter(1, prompt.swapped))
    comparison = comparison.replace("{2}", letter(2, prompt.swapped))
    think = f"Feedback: A {first} B {second} Comparison: {comparison} Conclusion: {verdict} is better."
    return think, verdict


def write(prompt: JudgingPrompt, *, think: str, answer: str, caption: str | None = None) -> str:
    """A judgement in the prompt's grammar; tags inside the content are dropped, they would break it.

    Example:
        >>> from lit_msrl.types import PreferenceExample
        >>> example = PreferenceExample("1", "text", "2+2?", 1, candidates=("4", "5"))
        >>> write(render(example, swapped=False), think="A is right.", answer="A")
        '<think>A is right.</think><answer>A</answer>'
    """
    content = {"type": prompt.task_type, "caption": caption, "think": think, "answer": answer}
    if "caption" in prompt.tags and caption is None:
        content["caption"] = caption_section(prompt)
    return "".join(f"<{tag}>{_TAG.sub(' ', str(content[tag]))}</{tag}>" for tag in prompt.tags)


def target(prompt: JudgingPrompt) -> str:
    """The supervised target: the annotator's rationale in the prompt's grammar."""
    think, verdict = reasoning(prompt)
    return write(prompt, think=think, answer=verdict)


def parse(text: str, tags: tuple[str, ...]) -> Judgement:
    """Read a completion. Never raises; linear in the length of the text.

    Args:
        text: What the model wrote, without end-of-turn tokens.
        tags: The grammar it was asked for.

    Example:
        >>> parse("<think>4 is right.</think><answer>A</answer>", ("think", "answer")).answer
        'A'
        >>> parse("<think><answer>A</answer></think>", ("think", "answer")).answer is None
        True
    """
    marks = list(_TAG.finditer(text))
    found = [m.group(1) + m.group(2) for m in marks]
    expected = [mark for tag in tags for mark in (tag, "/" + tag)]
    gaps = [text[a.end() : b.start()] for a, b in zip(marks, marks[1:], strict=False)]
    sections: dict[str, str] = {}
    if (
        found == expected
        and not (text[: marks[0].start()] + "".join(gaps[1::2]) + text[marks[-1].end() :]).strip()
    ):
        sections = {tag: gap.strip() for tag, gap in zip(tags, gaps[::2], strict=True)}
    well_formed = bool(sections) and all(sections.values()) and sections["answer"] in ("A", "B")
    return Judgement(
        well_formed, _answer(text, marks, found), _type(text, marks, found), sections if well_formed else {}
    )


def _answer(text: str, marks: list[re.Match[str]], found: list[str]) -> Letter | None:
    closed = found[-2:] == ["answer", "/answer"] and found.count("answer") == found.count("/answer") == 1
    if not closed or text[marks[-1].end() :].strip() or _thinking(found):
        return None
    verdict = text[marks[-2].end() : marks[-1].start()].strip()
    return verdict if verdict in ("A", "B") else None  # type: ignore[return-value]


def _thinking(found: list[str]) -> bool:
    """Whether a ``<think>`` is still open at the end, or was never paired."""
    thinks = [mark for mark in found if mark.endswith("think")]
    return thinks[-1:] == ["think"] or thinks.count("think") != thinks.count("/think")


def _type(text: str, marks: list[re.Match[str]], found: list[str]) -> str | None:
    leads = found[:2] == ["type", "/type"] and found.count("type") == found.count("/type") == 1
    if not leads or text[: marks[0].start()].strip():
        return None
    return text[marks[0].end() : marks[1].start()].strip().lower().replace("_", " ").replace("-", " ")


def _require_evidence(example: PreferenceExample, view: View) -> None:
    if example.task_type == "text":
        return
    missing = "captions" if view == "caption" and not example.captions else ""
    missing = "media" if view == "visual" and not example.media else missing
    if missing:
        raise ValueError(
            f"example {example.id!r} of {example.source!r} has no {missing}, which the {view} view needs"
        )


def _clean(text: str) -> str:
    return text.replace(MEDIA_MARK, "")


@cache
def _template(name: str) -> jinja2.Template:
    source = (files("lit_msrl") / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    return jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(source)
