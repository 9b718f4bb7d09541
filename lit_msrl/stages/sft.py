"""Supervised fine-tuning on judgements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_msrl.prompts import JudgingPrompt, target
from lit_msrl.stages.base import StageModule
from lit_msrl.stages.memory import with_less_at_once
from lit_msrl.types import PreferenceExample


class SFTModule(StageModule):
    """Imitate the annotators' rationales: the mean negative log-likelihood of their tokens."""

    in_halves = False  # hold half of a batch in memory at a time

    def targets(self, prompts: Sequence[JudgingPrompt]) -> list[str]:
        """What to imitate."""
        return [target(prompt) for prompt in prompts]

    def surprise(self, prompts: Sequence[JudgingPrompt], targets: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The summed negative log-likelihood of the targets, and their tokens."""
        ids, mask = self.policy.encode_targets(targets)
        logprobs, _ = self.policy.logprobs(self.policy.encode(prompts), ids, mask)
        return -logprobs.sum(), mask.sum()

    def training_step(self, batch: list[PreferenceExample], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        prompts = self.show(batch)
        return self.imitate(prompts, self.targets(prompts))

    def imitate(
        self, prompts: Sequence[JudgingPrompt], targets: Sequence[str], *, weight: float = 1.0
    ) -> Tensor:
        """The mean negative log-likelihood of the tokens of all ranks.

        Args:
            prompts: What is shown.
            targets: What to write.
            weight: 0 for a rank that has nothing to learn and only keeps the others company.

        Returns:
            This rank's part, times the number of ranks, over which gradients are averaged.
        """
        size = -(-len(prompts) // 2) if self.in_halves else len(prompts)
        parts = [slice(i, i + size) for i in range(0, len(prompts), size)]
        one = partial(checkpoint, self.surprise, use_reentrant=False) if self.in_halves else self.surprise
        surprises, counts = zip(*(one(prompts[part], targets[part]) for part in parts), strict=True)
        tokens = self.trainer.strategy.reduce(weight * torch.stack(counts).sum(), reduce_op="sum")
        loss = weight * torch.stack(surprises).sum() / tokens * self.trainer.world_size
        self.log("sft/loss", loss.detach(), prog_bar=True, batch_size=len(prompts), sync_dist=True)
        return loss

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """A step; when memory runs out, once more with half of the batch in memory at a time."""
        attempt = partial(super().optimizer_step, epoch, batch_idx, optimizer, optimizer_closure)
        with_less_at_once(self, attempt, self._halve)

    def _halve(self) -> str:
        if self.in_halves or self.trainer.accumulate_grad_batches > 1:
            return ""
        self.in_halves = True
        return "half a batch at a time, computed twice; a smaller data.batch_size is faster"
