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
        ids, mask = self.policy.encode_targets(self.targets(prompts))
        logprobs, _ = self.policy.logprobs(self.policy.encode(prompts), ids, mask)
        loss = -logprobs.sum() / mask.sum()
        self.log("sft/loss", loss.detach(), prog_bar=True, batch_size=len(batch), sync_dist=True)
        return loss
