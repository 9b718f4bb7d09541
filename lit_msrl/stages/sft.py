"""Supervised fine-tuning on judgements."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lit_msrl.prompts import JudgingPrompt, target
from lit_msrl.stages.base import StageModule
from lit_msrl.types import PreferenceExample


class SFTModule(StageModule):
    """Imitate the annotators' rationales: the mean negative log-likelihood of their tokens."""

    def targets(self, prompts: Sequence[JudgingPrompt]) -> list[str]:
        """What to imitate."""
        return [target(prompt) for prompt in prompts]

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
        ids, mask = self.policy.encode_targets(targets)
        logprobs, _ = self.policy.logprobs(self.policy.encode(prompts), ids, mask)
        tokens = self.trainer.strategy.reduce(weight * mask.sum(), reduce_op="sum")
        loss = -weight * logprobs.sum() / tokens * self.trainer.world_size
        self.log("sft/loss", loss.detach(), prog_bar=True, batch_size=len(prompts), sync_dist=True)
        return loss
