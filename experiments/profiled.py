"""Optimizer steps of a policy that is in memory, timed; their work is counted, their memory noted."""

from __future__ import annotations

import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from data_modules.stream import Batch
from lit_msrl.backbones import PARTS, Part
from lit_msrl.losses import GRPOLoss
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import MEDIA_MARK, Judgement, JudgingPrompt
from lit_msrl.rewards import RewardSum, Scores
from lit_msrl.rollout import Rollout
from lit_msrl.stages import RLVRModule
from lit_msrl.stages.planning import MicroBatchSize
from lit_msrl.stages.watch import peak_memory
from lit_msrl.types import PreferenceExample

ADAMW = partial(torch.optim.AdamW, fused=True)


def profile_policy(
    policy: GenerativeRMPolicy,
    examples: Sequence[PreferenceExample],
    *,
    prompts: int,
    group: int,
    completion: int,
    trainer: Callable[[int, Clock], L.Trainer],
    micro_batch_size: MicroBatchSize = 1,
    optimizer: OptimizerCallable = ADAMW,
    parts: Sequence[Part] = PARTS,
) -> dict[str, Any]:
    """Run the steps of a policy that is in memory; what they cost.

    Args:
        policy: The model.
        examples: Of all steps, the one that is not timed included.
        prompts: Prompts per optimizer step.
        group: Completions per prompt.
        completion: Tokens per completion.
        trainer: From the steps that are timed and their clock to a trainer.
        micro_batch_size: As in ``RLVRModule``.
        optimizer: What steps.
        parts: What trains.
    """
    forbidden = torch.tensor([policy.tokenizer.eos_token_id])
    # so that no completion ends early
    policy.suppressed = torch.cat([policy.suppressed, forbidden.to(policy.device)])
    stage = ProfiledStage(
        policy,
        dict.fromkeys(parts, 1e-6),
        optimizer,
        GRPOLoss(),
        DistinctLetters(),
        group_size=group,
        max_completion=completion,
        micro_batch_size=micro_batch_size,
    )
    stage.counter = (clock := Clock()).counter
    runner = trainer(len(examples) // prompts - 1, clock)
    runner.fit(stage, DataLoader(examples, batch_size=prompts, collate_fn=_batch))  # type: ignore[arg-type]
    load = {"prompts": prompts, "group": group, "completion": completion}
    return (
        {"peer": "lit_msrl"}
        | load
        | cost(stage, clock, runner.strategy.root_device, tokens=math.prod(load.values()))
    )


def cost(stage: ProfiledStage, clock: Clock, device: torch.device, *, tokens: int) -> dict[str, Any]:
    """What the steps took.

    Args:
        stage: After its last step.
        clock: What timed it.
        device: Where it ran.
        tokens: Written in a step.
    """
    seconds, sampling = statistics.median(clock.steps), statistics.median(clock.sampling[1:])
    cuda = device.type == "cuda"
    held = peak_memory(torch.device("cpu")), peak_memory(device)
    dtype = torch.bfloat16 if cuda else stage.policy.head.weight.dtype
    peak = peak_flops(device, dtype, size=8192 if cuda else 1024)
    work = clock.counter.get_total_flops() - stage.uncounted
    return {
        "threads": torch.get_num_threads(),
        "prompt_tokens": stage.last_rollout.batch.input_ids.shape[1],
        "step_seconds": [round(s, 3) for s in clock.steps],
        "median_step_seconds": round(seconds, 3),
        "peak_rss_gb": round(held[0], 2),
        "rollout_seconds": round(sampling, 3),
        "learn_seconds": round(seconds - sampling, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "teraflop_per_step": round(work / 1e12, 3),
        "share_of_peak": round(work / seconds / peak, 3),
    } | ({"peak_device_gb": round(held[1], 2)} if cuda else {})


def trainer(
    device: str, steps: int, clock: Clock, *, precision: Any = "32-true", strategy: Any = "auto"
) -> L.Trainer:
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
        precision=precision,
        strategy=strategy,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _batch(examples: list[PreferenceExample]) -> Batch:
    return Batch(examples, {})  # into which Lightning does not look


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

    def show(self, examples: Sequence[PreferenceExample]) -> list[JudgingPrompt]:
        """The media, then the text."""
        marks = [MEDIA_MARK * len(example.media) for example in examples]
        return [
            JudgingPrompt(example, False, mark + example.prompt, example.media, ("answer",), "A")
            for example, mark in zip(examples, marks, strict=True)
        ]


class DistinctLetters(RewardSum):
    """The number of different letters of a completion, modulo 7: a reward that varies."""

    def read(self, texts: Sequence[str], prompts: Sequence[JudgingPrompt]) -> list[Judgement]:
        """Remember the texts, which is all that counts here."""
        self.counts = [float(len(set(text)) % 7) for text in texts]
        return super().read(texts, prompts)

    def __call__(self, judgements: Sequence[Judgement], prompts: Sequence[JudgingPrompt]) -> Scores:
        """See ``RewardSum``."""
        return (
            super()
            .__call__(judgements, prompts)
            ._replace(total=torch.tensor(self.counts, dtype=torch.float32))
        )


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
