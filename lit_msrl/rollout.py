"""Scored completions, what a step learns from them, and how that is cut into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_msrl.prompts import Judgement, JudgingPrompt


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Groups of ``G`` completions with their credit, all that a loss reads: tensors and nothing to look at.

    Attributes:
        batch: The prompts as the policy reads them (``policy.PromptBatch``).
        completion_ids: ``(B, T)``, padded on the right; the ``G`` of a prompt adjacent.
        completion_mask: ``(B, T)``, True where a token counts.
        group_size: ``G``.
        rewards: ``(B,)``, the weighted sum.
        advantages: ``(B,)``.
        truncated: ``(B,)``, True where a completion was cut off before it ended.
        normalizer: What the loss of the whole step is divided by (``RLVRLoss.normalizer``, over all ranks).
        tokens: Completion tokens of the whole step; ``None`` where this *is* the step.
        sampler_logprobs: ``(B, T)`` as the engine drew them, to see (and correct) where it differs.
        old_logprobs: ``(B, T)`` under the policy that sampled; ``None`` means the policy as it is now.
        ref_logprobs: ``(B, T)`` under the reference policy, if the loss needs it.
    """

    batch: Any
    completion_ids: Tensor
    completion_mask: Tensor
    group_size: int
    rewards: Tensor
    advantages: Tensor
    truncated: Tensor
    normalizer: Tensor
    tokens: Tensor | None = None
    sampler_logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None

    @property
    def step_tokens(self) -> Tensor:
        """Completion tokens of the whole step, the same in each of its micro-batches."""
        return self.completion_mask.sum() if self.tokens is None else self.tokens

    def micro_batches(self, groups_per_micro_batch: int) -> Iterator[Lesson]:
        """Cut between groups, never inside one; columns that only pad are dropped.

        Args:
            groups_per_micro_batch: Prompts per micro-batch; the last may have fewer.

        Raises:
            ValueError: ``groups_per_micro_batch`` is below 1.
        """
        if groups_per_micro_batch < 1:
            raise ValueError(f"groups_per_micro_batch is {groups_per_micro_batch}; it must be 1 or more")
        count = len(self.completion_ids) // self.group_size
        for start in range(0, count, groups_per_micro_batch):
            groups = range(start, min(start + groups_per_micro_batch, count))
            yield self.pick(groups, self.batch.select(slice(groups.start, groups.stop)))

    def pick(self, groups: Sequence[int], batch: Any) -> Lesson:
        """Some of the groups, without columns that then only pad.

        Args:
            groups: Which.
            batch: Their prompts, as the policy reads them.
        """
        rows = [group * self.group_size + i for group in groups for i in range(self.group_size)]
        width = _width(self.completion_mask[rows])

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows, :width]

        return Lesson(
            batch=batch,
            completion_ids=self.completion_ids[rows, :width],
            completion_mask=self.completion_mask[rows, :width],
            group_size=self.group_size,
            rewards=self.rewards[rows],
            advantages=self.advantages[rows],
            truncated=self.truncated[rows],
            normalizer=self.normalizer,
            tokens=self.step_tokens,
            sampler_logprobs=cut(self.sampler_logprobs),
            old_logprobs=cut(self.old_logprobs),
            ref_logprobs=cut(self.ref_logprobs),
        )

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Put ``(b, t)`` tensors of successive micro-batches together again: ``(B, T)``, 0 where cut."""
        width = self.completion_ids.shape[1]
        return torch.cat([nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])

    def to(self, device: torch.device) -> Lesson:
        """Move all tensors."""
        tensors = {field.name: vars(self)[field.name] for field in fields(self) if field.name != "batch"}
        moved = {name: value.to(device) for name, value in tensors.items() if isinstance(value, Tensor)}
        return replace(self, batch=self.batch.to(device), **moved)


@dataclass(frozen=True, kw_only=True)
class Rollout(Lesson):
    """What was sampled, and all there is to see of it: ``P`` prompts with ``G`` completions each.

    Attributes:
        prompts: The ``P`` prompts.
        texts: The ``B = P * G`` completions as text, without end-of-turn tokens.
        judgements: The ``B`` completions as read.
        reward_parts: ``(B,)`` for each reward, unweighted.

    Raises:
        ValueError: The completions are not ``P`` whole groups.
    """

    prompts: list[JudgingPrompt]
    texts: list[str]
    judgements: list[Judgement]
    reward_parts: dict[str, Tensor]

    def __post_init__(self) -> None:
        found, groups = len(self.completion_ids), len(self.prompts)
        if found != groups * self.group_size:
            raise ValueError(f"{found} completions are not {groups} groups of {self.group_size}")


def _width(mask: Tensor) -> int:
    """Columns up to the last that counts, at least one."""
    used = mask.any(dim=0).nonzero()
    return int(used.max()) + 1 if len(used) else 1
