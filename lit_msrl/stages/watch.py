"""What a person follows while RL runs, as numbers to log."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from lit_msrl import functional as F
from lit_msrl.rollout import Rollout
from lit_msrl.strategies import whole
from lit_msrl.types import TASK_TYPES


def rollout_means(rollout: Rollout) -> dict[str, Tensor]:
    """Rewards by part, groups that agree, lengths, completions cut off, verdicts: means of this rank."""
    lengths = rollout.completion_mask.sum(dim=1).float()
    first = torch.tensor([judgement.answer == "A" for judgement in rollout.judgements], device=lengths.device)
    return {f"reward/{name}": part.mean() for name, part in rollout.reward_parts.items()} | {
        "reward/total": rollout.rewards.mean(),
        "rollout/zero_variance_groups": F.zero_variance(rollout.rewards, rollout.group_size).float().mean(),
        "rollout/length": lengths.mean(),
        "rollout/truncated": rollout.truncated.float().mean(),
        "rollout/verdict_a": first.float().mean(),
    }


def task_means(rollout: Rollout, add_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Rewards by part and task, ``<part>/<task>``, of the tasks that occur on any rank."""
    scores = rollout.reward_parts | {"total": rollout.rewards}
    tasks = torch.tensor([TASK_TYPES.index(prompt.task_type) for prompt in rollout.prompts])
    members = torch.eye(len(TASK_TYPES))[tasks.repeat_interleave(rollout.group_size)].to(rollout.rewards)
    table = torch.stack([*scores.values(), torch.ones_like(rollout.rewards)])  # (R + 2, B)
    *sums, counts = add_over_ranks(table @ members)  # by task
    return {
        f"{name}/{task.replace(' ', '_')}": total[i] / counts[i]
        for name, total in zip(scores, sums, strict=True)
        for i, task in enumerate(TASK_TYPES)
        if counts[i]
    }


def step_means(metrics: dict[str, Tensor], add_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The loss's metrics of this rank, which add up; and the effective share of another sampler's tokens."""
    total = add_over_ranks(torch.stack([value.float() for value in metrics.values()]))
    means = dict(zip(metrics, total, strict=True))
    if "sampler/weight" in means:
        share = means["sampler/weight"].square() / means.pop("sampler/weight_square")
        means["sampler/effective_sample_size"] = share
    return means


def gradient_norms(optimizer: LightningOptimizer) -> dict[str, Tensor]:
    """The norm of each part's gradient."""
    return {
        f"gradient_norm/{group['name']}": whole(
            torch.nn.utils.get_total_norm([p.grad for p in group["params"] if p.grad is not None])
        )
        for group in optimizer.param_groups
    }


def peak_memory(device: torch.device) -> float:
    """The most memory held so far, in GiB: of the device, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident / (2**30 if sys.platform == "darwin" else 2**20)
