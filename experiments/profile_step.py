"""Times real optimizer steps of this project, and says how much memory they took.

python experiments/profile_step.py --model DIR --workload FILE [--prompts=4 --group=8 --completion=128]

The workload is JSON lines of ``image`` (a path, relative to the file), ``prompt`` and ``label``. Each step
samples ``group`` completions of exactly ``completion`` tokens per prompt (end-of-turn is forbidden), scores
them, and takes one AdamW step of on-policy GRPO without KL on all parts of the model. One step comes first
that is not timed. The last line is JSON; ``share_of_peak`` is the share of what a matrix product reaches.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
import warnings
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from jsonargparse import auto_cli
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from data_modules.media import Decoder
from lit_msrl.cli import run
from lit_msrl.losses import GRPOLoss
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import MEDIA_MARK, Judgement, JudgingPrompt
from lit_msrl.rewards import RewardSum, Scores
from lit_msrl.rollout import Rollout
from lit_msrl.stages import RLVRModule
from lit_msrl.stages.planning import MicroBatchSize
from lit_msrl.stages.watch import peak_memory
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
    cuda = device == "cuda"
    policy = GenerativeRMPolicy(model, dtype="bfloat16" if cuda else "float32", max_length=1 << 20)
    forbidden = torch.tensor([policy.tokenizer.eos_token_id])
    policy.suppressed = torch.cat([policy.suppressed, forbidden])  # so that no completion ends early
    stage = ProfiledStage(
        policy,
        {"language": 1e-6, "projector": 1e-6, "vision": 1e-6},
        partial(torch.optim.AdamW, lr=1e-6, fused=True),
        GRPOLoss(),
        DistinctLetters(),
        group_size=group,
        max_completion=completion,
        micro_batch_size=micro_batch_size,
    )
    stage.counter = (clock := Clock()).counter
    examples = read_workload(Path(workload), prompts * (steps + 1))
    trainer(device, steps, clock).fit(stage, DataLoader(examples, batch_size=prompts, collate_fn=list))  # type: ignore[arg-type]
    seconds, sampling = statistics.median(clock.steps), statistics.median(clock.sampling[1:])
    held = peak_memory(torch.device("cpu")), peak_memory(policy.device)
    peak = peak_flops(policy.device, policy.head.weight.dtype, size=8192 if device == "cuda" else 1024)
    work = clock.counter.get_total_flops() - stage.uncounted
    return {
        "peer": "lit_msrl",
        "prompts": prompts,
        "group": group,
        "completion": completion,
        "threads": threads,
        "step_seconds": [round(s, 3) for s in clock.steps],
        "median_step_seconds": round(seconds, 3),
        "peak_rss_gb": round(held[0], 2),
        "rollout_seconds": round(sampling, 3),
        "learn_seconds": round(seconds - sampling, 3),
        "tokens_per_second": round(prompts * group * completion / seconds, 1),
        "teraflop_per_step": round(work / 1e12, 3),
        "share_of_peak": round(work / seconds / peak, 3),
    } | ({"peak_device_gb": round(held[1], 2)} if device == "cuda" else {})


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


def trainer(device: str, steps: int, clock: Clock) -> L.Trainer:
    """A trainer that does nothing but train; the first step is not timed."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for advice in ("The .* does not have many workers", "You defined a `validation_step` but have no"):
        warnings.filterwarnings("ignore", f".*{advice}")
    return L.Trainer(
        accelerator=device,
        devices=1,
        max_steps=steps + 1,
        max_epochs=1,
        callbacks=[clock],
        logger=False,
        precision="bf16-true" if device == "cuda" else "32-true",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class ProfiledStage(RLVRModule):
    """The RL step on prompts that are shown as they are, without the judge's instructions."""

    name = "profile"
    counter: FlopCounterMode
    uncounted = 0

    def check_sharing(self, rollout: Rollout) -> None:
        """Done once a run: not counted as work of a step."""
        before = self.counter.get_total_flops()
        super().check_sharing(rollout)
        self.uncounted += self.counter.get_total_flops() - before

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Examples stay as they are: the policy moves what it encodes."""
        return batch

    def show(self, examples: Sequence[PreferenceExample]) -> list[JudgingPrompt]:
        """A picture, then the text."""
        return [
            JudgingPrompt(example, False, MEDIA_MARK + example.prompt, example.media, ("answer",), "A")
            for example in examples
        ]


class DistinctLetters(RewardSum):
    """The number of different letters of a completion, modulo 7: a reward that varies."""

    def read(self, texts: Sequence[str], prompts: Sequence[JudgingPrompt]) -> list[Judgement]:
        """Remember the texts, which is all that counts here."""
        self.counts = [float(len(set(text)) % 7) for text in texts]
        return super().read(texts, prompts)

    def __call__(self, judgements: Sequence[Judgement], prompts: Sequence[JudgingPrompt]) -> Scores:
        """See ``RewardSum``."""
        return super().__call__(judgements, prompts)._replace(total=torch.tensor(self.counts))


class Clock(L.Callback):
    """Times all steps but the first, whose floating-point operations are counted instead."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.sampling: list[float] = []
        self.counter = FlopCounterMode(display=False)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Count the first step."""
        if not self.marks:
            self.counter.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Note the time; a step lasts from the end of the one before to its own end."""
        if not self.marks:
            self.counter.__exit__(None, None, None)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())
        self.sampling.append(float(trainer.callback_metrics["time/sample"]))

    @property
    def steps(self) -> list[float]:
        """Seconds of each timed step."""
        return [end - start for start, end in pairwise(self.marks)]


def peak_flops(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """The most floating-point operations per second that a matrix product was seen to reach."""
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    timer = Timer("left @ right", globals={"left": left, "right": right}, num_threads=torch.get_num_threads())
    return 2 * size**3 / min(timer.timeit(3).mean for _ in range(5))


if __name__ == "__main__":
    run(lambda: print(json.dumps(auto_cli(profile_step, as_positional=False))))
