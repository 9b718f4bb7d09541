"""Times real optimizer steps of this project, and says how much memory they took.

python experiments/profile_step.py --model DIR --workload FILE [--prompts=4 --group=8 --completion=128]

The workload is JSON lines of ``image`` (a path, relative to the file), ``prompt`` and ``label``. Each step
samples ``group`` completions of exactly ``completion`` tokens per prompt (end-of-turn is forbidden), scores
them, and takes one AdamW step of on-policy GRPO without KL on all parts of the model. One step comes first
that is not timed. The last line is JSON; ``share_of_peak`` is the share of what a matrix product reaches.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli

from data_modules.media import Decoder
from experiments.profiled import profile_policy, trainer
from lit_msrl.cli import run
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.stages.planning import MicroBatchSize
from lit_msrl.types import Media, PreferenceExample


def profile_step(
    model: str,
    workload: str,
    *,
    prompts: int = 4,
    group: int = 8,
    completion: int = 128,
    steps: int = 3,
    threads: int = 2,
    device: Literal["cpu", "cuda"] = "cpu",
    micro_batch_size: MicroBatchSize = 1,
) -> dict[str, Any]:
    """Run the steps and print what they cost.

    Args:
        model: Folder of a Hugging Face model.
        workload: A file of prompts, at least ``prompts * (steps + 1)`` of them.
        prompts: Prompts per optimizer step.
        group: Completions per prompt.
        completion: Tokens per completion.
        steps: Steps that are timed.
        threads: CPU threads of torch.
        device: On ``cuda`` weights are bfloat16.
        micro_batch_size: As in ``RLVRModule``.

    Raises:
        ValueError: The workload has too few prompts.
    """
    torch.set_num_threads(threads)
    policy = GenerativeRMPolicy(
        model, dtype="bfloat16" if device == "cuda" else "float32", max_length=1 << 20
    )
    return profile_policy(
        policy,
        read_workload(Path(workload), prompts * (steps + 1)),
        prompts=prompts,
        group=group,
        completion=completion,
        micro_batch_size=micro_batch_size,
        trainer=partial(trainer, device, precision="bf16-true" if device == "cuda" else "32-true"),
    )


def read_workload(path: Path, count: int) -> list[PreferenceExample]:
    """The first ``count`` prompts of the workload, with their pictures."""
    with path.open() as file:
        rows = [json.loads(line) for line, _ in zip(file, range(count), strict=False)]
    if len(rows) < count:
        raise ValueError(f"{path} has {len(rows)} prompts, {count} are needed: make a longer workload")
    decode = Decoder()
    return [
        PreferenceExample(
            id=str(i),
            task_type="image understanding",
            prompt=row["prompt"],
            winner=1 if row["label"] == "A" else 2,
            candidates=("A", "B"),
            media=(decode(Media("image", str(path.parent / row["image"]))),),
        )
        for i, row in enumerate(rows)
    ]


if __name__ == "__main__":
    run(lambda: print(json.dumps(auto_cli(profile_step, as_positional=False))))
