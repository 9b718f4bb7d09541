"""Two RL steps of a small model, measured: ``python -m tests.measure_peak '{"rank": 0, ...}'``.

Prints, as JSON, the most memory that the steps held beyond what the process had before the model was made,
and what the plan says of them.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import warnings
from pathlib import Path

import datasets
import torch

from data_modules.base import PreferenceDataModule
from data_modules.sources import Source
from lit_msrl.adapters import LoRA
from lit_msrl.backbones.tiny import build_image_processor, build_model, build_tokenizer
from lit_msrl.footprint import Memory, ModelSize, Step, estimate
from lit_msrl.losses import GRPOLoss
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.recompute import recompute
from lit_msrl.sizes import size_of
from lit_msrl.types import PreferenceExample
from tests.conftest import WORDS
from tests.stages.test_rlvr import Stage, Uneven, trainer

PROMPTS, GROUP, COMPLETION = 2, 4, 32


class Long(Source):
    """Texts of the same few hundred words."""

    def __init__(self, words: int) -> None:
        self.words = words

    def dataset(self) -> datasets.IterableDataset:
        return datasets.IterableDataset.from_generator(self._stream)  # type: ignore[return-value]

    def describe(self) -> str:
        return "long texts"

    def _stream(self):
        for i in range(2 * PROMPTS):
            text = " ".join(["red ball"] * self.words)
            yield {"example": PreferenceExample(f"t{i}", "text", text, 1, candidates=("the ball", "the sky"))}


def status(field: str) -> int:
    """A size in /proc/self/status, in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def train(width: int, layers: int, words: int, rank: int, *, again: bool) -> tuple[ModelSize, int]:
    """Two steps; the size of the model and the tokens of a prompt."""
    tokenizer = build_tokenizer(WORDS, vocab_size=1000)
    model = build_model(tokenizer, width=width, layers=layers, heads=4, vision_width=32, vision_layers=1)
    size = size_of(model, rank)
    lora = LoRA(rank=rank) if rank else None
    policy = GenerativeRMPolicy.from_parts(model, tokenizer, build_image_processor(), lora=lora)
    if again:
        recompute(policy.layers())
    stage = Stage(
        policy, {"language": 1e-4}, torch.optim.AdamW, GRPOLoss(), Uneven(), group_size=GROUP,
        micro_batch_size=1, max_completion=COMPLETION, style="compact",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        data = PreferenceDataModule(Long(words), batch_size=PROMPTS)
        trainer(Path(folder), max_steps=2).fit(stage, data)
    return size, stage.last_rollout.batch.input_ids.shape[1]


def planned(size: ModelSize, tokens: int, *, again: bool) -> Memory:
    """The plan for the same steps."""
    step = Step(
        prompts=PROMPTS, micro_batch=1, group=GROUP, prompt_tokens=tokens, picture_tokens=0,
        completion_tokens=COMPLETION, is_recomputed=again, is_accelerator=False,
    )  # fmt: skip
    return estimate(size, step)


def main(rank: int, again: bool) -> None:
    """Measure."""
    train(32, 2, 4, rank, again=again)  # loads what is loaded once
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    size, tokens = train(512, 6, 200, rank, again=again)
    measured = status("VmHWM") - before
    memory = planned(size, tokens, again=again)
    print(json.dumps({"measured": measured, "planned": memory.peak, "tokens": tokens, "parts": vars(memory)}))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    options = json.loads(sys.argv[1])
    main(options["rank"], options["recompute"])
