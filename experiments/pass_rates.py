"""How often a judge gets each training example right; what it never or always does teaches nothing.

python experiments/pass_rates.py --source=World --source.tasks='[text]' --source.size=640 --view=caption \
    --checkpoint=outputs/stage1_sft/version_0/checkpoints/last.ckpt --output=outputs/pass_rates.jsonl

Then train on the rest: ``--data.train=PassRateFilter --data.train.rates=outputs/pass_rates.jsonl
--data.train.source=...``. Interrupted, it goes on where it stopped, to the same rates.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import compress, islice
from pathlib import Path
from typing import Any, TextIO

from jsonargparse import auto_cli
from tqdm import tqdm

import data_modules  # noqa: F401 - so that the command line finds the sources by their short names
from data_modules.media import Decoder
from data_modules.pass_rates import key, read_pass_rates
from data_modules.sources import Source
from experiments.judging import placed
from lit_msrl.cli import run
from lit_msrl.engines import HFEngine, RolloutEngine, Sampling
from lit_msrl.evaluation import load_weights, pass_rates
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import Style, View
from lit_msrl.types import PreferenceExample


def measure(
    source: Source,
    output: str,
    policy: GenerativeRMPolicy | None = None,
    engine: RolloutEngine | None = None,
    *,
    checkpoint: str | None = None,
    samples: int = 8,
    temperature: float = 1.0,
    max_completion: int = 1024,
    view: View = "visual",
    style: Style = "compact",
    batch_size: int = 16,
    num_frames: int = 3,
    max_pixels: int = 1024 * 1024,
    device: str | None = None,
    seed: int = 0,
) -> None:
    """Sample judgements of every example and write the share of right verdicts, one example per line.

    Show the examples as training will: the same view, style, frames and pixels.

    Args:
        source: The examples; ties are left out.
        output: The JSONL file.
        policy: The judge; by default the embedded tiny model.
        engine: What samples; by default ``HFEngine``.
        checkpoint: The judge's weights, a checkpoint of any stage; by default those of the policy.
        samples: Judgements per example.
        temperature: Of sampling them.
        max_completion: Longest completion in tokens.
        view: Show evidence as ``caption`` or as pixels (``visual``).
        style: Prompt wording, ``full`` (the paper's) or ``compact`` (for tiny models).
        batch_size: Examples at a time.
        num_frames: Frames taken from a clip.
        max_pixels: Pictures and frames are shrunk to at most this many pixels.
        device: Where to sample; by default a GPU if there is one.
        seed: Seed of all sampling.
    """
    source.check()
    policy = policy or GenerativeRMPolicy("tiny")
    if checkpoint is not None:
        load_weights(policy, Path(checkpoint))
    policy.to(placed(device, None)[0]).eval()
    engine, file = engine or HFEngine(), Path(output)
    how = {"samples": samples, "judge": checkpoint or "base", "engine": type(engine).__name__}
    how |= {"view": view, "style": style, "temperature": temperature}
    done = measured(file, how)
    decoder, sampling = Decoder(num_frames, max_pixels), Sampling(samples, max_completion, temperature)
    with file.open("a", encoding="utf-8") as lines:
        for number, batch in enumerate(tqdm(in_batches(source, batch_size), desc="judging", leave=False)):
            missing = [(example.source, example.id) not in done for example in batch]
            if any(missing):  # then all are judged, so that a draw is as it was
                shown = [replace(e, media=()) if view == "caption" else decoder.example(e) for e in batch]
                rates = pass_rates(
                    policy, engine, shown, view=view, style=style, sampling=sampling,
                    seed=hash((seed, number)) % 2**62,
                )  # fmt: skip
                write(lines, compress(zip(batch, rates, strict=True), missing), how)


def write(lines: TextIO, rates: Iterable[tuple[PreferenceExample, float]], how: dict[str, Any]) -> None:
    """Add examples and their rates, so that they are there even if the machine goes down."""
    for example, rate in rates:
        row = {"source": example.source, "id": example.id, "pass_rate": rate}
        lines.write(json.dumps(row | how) + "\n")
    lines.flush()
    os.fsync(lines.fileno())


def in_batches(source: Source, size: int) -> Iterator[list[PreferenceExample]]:
    """The examples that have a winner, always in the same batches."""
    examples = (row["example"] for row in source.dataset() if row["example"].winner != "tie")
    while batch := list(islice(examples, size)):
        yield batch


def measured(file: Path, how: Mapping[str, Any]) -> set[tuple[str, str]]:
    """The examples whose rates the file holds; a line that was broken off is removed.

    Raises:
        ValueError: The file holds the rates of another judge, or measured in another way.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    content = file.read_bytes() if file.is_file() else b""
    file.write_bytes(content[: content.rfind(b"\n") + 1])
    rows = read_pass_rates(str(file))
    for name, value in how.items():
        if other := next((row for row in rows if row.get(name) != value), None):
            raise ValueError(
                f"{file} holds pass rates with {name} {other.get(name)}, not {value}; choose another --output"
            )
    return {key(row) for row in rows}


if __name__ == "__main__":
    run(lambda: auto_cli(measure, as_positional=False, exit_on_error=False))
