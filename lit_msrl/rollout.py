"""The scored completions of one optimizer step, and how they are cut into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_msrl.prompts import Judgement, JudgingPrompt


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """``P`` prompts with ``G`` completions each, ``B = P * G``; those of a prompt are adjacent.

    Attributes:
        prompts: The ``P`` prompts.
        batch: The same prompts as the policy reads them (``policy.PromptBatch``); has ``select(slice)``.
        completion_ids: ``(B, T)``, padded on the right.
        completion_mask: ``(B, T)``, True where a token counts.
        group_size: ``G``.
        texts: The ``B`` completions as text, without end-of-turn tokens.
        judgements: The ``B`` completions as read.
        rewards: ``(B,)``, the weighted sum.
        reward_parts: ``(B,)`` for each reward, unweighted; to be logged.
        advantages: ``(B,)``.
        truncated: ``(B,)``, True where a completion was cut off before it ended.
        normalizer: What the loss of the whole step is divided by (``RLVRLoss.normalizer``, over all ranks).
        tokens: Completion tokens of the whole step; ``None`` where this rollout *is* the step.
        sampler_logprobs: ``(B, T)`` as the engine drew them, to see (and correct) where it differs.
        old_logprobs: ``(B, T)`` under the policy that sampled; ``None`` means the policy as it is now.
        ref_logprobs: ``(B, T)`` under the reference policy, if the loss needs it.

    Raises:
        ValueError: The completions are not ``P`` whole groups.
    """

    prompts: list[JudgingPrompt]
    batch: Any
    completion_ids: Tensor
    completion_mask: Tensor
    group_size: int
    texts: list[str]
    judgements: list[Judgement]
    rewards: Tensor
    reward_parts: dict[str, Tensor]
    advantages: Tensor
    truncated: Tensor
    normalizer: Tensor
    tokens: Tensor | None = None
    sampler_logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None

    def __post_init__(self) -> None:
        found, groups = len(self.completion_ids), len(self.prompts)
        if found != groups * self.group_size:
            raise ValueError(f"{found} completions are not {groups} groups of {self.group_size}")

    @property
    def step_tokens(self) -> Tensor:
        """Completion tokens of the whole step, the same in each of its micro-batches."""
        return self.completion_mask.sum() if self.tokens is None else self.tokens

    def micro_batches(self, groups_per_micro_batch: int) -> Iterator[Rollout]:
        """Cut between groups, never inside one; columns that only pad are dropped.

        Args:
            groups_per_micro_batch: Prompts per micro-batch; the last may have fewer.

        Raises:
            ValueError: ``groups_per_micro_batch`` is below 1.
        """
        if groups_per_micro_batch < 1:
            raise ValueError(f"groups_per_micro_batch is {groups_per_micro_batch}; it must be 1 or more")
        for start in range(0, len(self.prompts), groups_per_micro_batch):
            groups = range(start, min(start + groups_per_micro_batch, len(self.prompts)))
            yield self.pick(groups, self.batch.select(slice(groups.start, groups.stop)))

    def pick(self, groups: Sequence[int], batch: Any) -> Rollout:
        """Some of the groups, without columns that then only pad.

        Args:
            groups: Which.
            batch: Their prompts, as the policy reads them.
        """
        rows = [group * self.group_size + i for group in groups for i in range(self.group_size)]
        width = _width(self.completion_mask[rows])

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows, :width]

        return replace(
            self,
            prompts=[self.prompts[group] for group in groups],
            batch=batch,
            completion_ids=self.completion_ids[rows, :width],
            completion_mask=self.completion_mask[rows, :width],
            texts=[self.texts[row] for row in rows],
            judgements=[self.judgements[row] for row in rows],
            rewards=self.rewards[rows],
            reward_parts={name: part[rows] for name, part in self.reward_parts.items()},
            advantages=self.advantages[rows],
            truncated=self.truncated[rows],
            tokens=self.step_tokens,
            sampler_logprobs=cut(self.sampler_logprobs),
            old_logprobs=cut(self.old_logprobs),
            ref_logprobs=cut(self.ref_logprobs),
        )

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Put ``(b, t)`` tensors of successive micro-batches together again: ``(B, T)``, 0 where cut."""
        width = self.completion_ids.shape[1]
        return torch.cat([nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])


def _width(mask: Tensor) -> int:
    """Columns up to the last that counts, at least one."""
    used = mask.any(dim=0).nonzero()
    return int(used.max()) + 1 if len(used) else 1
