"""Group relative policy optimization."""

from __future__ import annotations

from torch import Tensor

from lit_msrl import functional as F
from lit_msrl.losses.base import LossOutput, RLVRLoss
from lit_msrl.rollout import Rollout


class GRPOLoss(RLVRLoss):
    """GRPO (arXiv:2402.03300): ``-min(ratio A, clip(ratio) A) + kl_coef KL(policy, reference)`` per token.

    Where no ``old_logprobs`` are given the rollout came from the policy as it is: the ratio is 1 and the
    gradient that of REINFORCE with the group's mean as baseline.

    Args:
        clip_range: How far the ratio may fall below 1.
        clip_range_high: How far it may rise above 1; ``None`` for the same (DAPO: 0.28).
        kl_coef: Weight of the KL term; 0 needs no reference policy.
        scale_rewards: Divide advantages by the group's standard deviation.
        aggregate: What weighs the same in a step: each ``token``, each ``sequence``, or a token in every step
            (``constant``).
    """

    def __init__(
        self,
        clip_range: float = 0.2,
        clip_range_high: float | None = None,
        kl_coef: float = 0.0,
        *,
        scale_rewards: bool = False,
        aggregate: F.Aggregation = "token",
    ) -> None:
        self.clip_range = clip_range
        self.clip_range_high = clip_range if clip_range_high is None else clip_range_high
        self.kl_coef = kl_coef
        self.scale_rewards = scale_rewards
        self.aggregate: F.Aggregation = aggregate

    @property
    def needs_reference(self) -> bool:
        """Whether there is a KL term."""
        return self.kl_coef != 0

    def advantages(self, rewards: Tensor, group_size: int) -> Tensor:
        """Reward less the group's mean, scaled if so configured; ``(B,) -> (B,)``."""
        return F.group_advantages(rewards, group_size, scale=self.scale_rewards)

    def normalizer(self, completion_mask: Tensor, max_length: int) -> Tensor:
        """Tokens, sequences, or sequences times ``max_length``, as ``aggregate`` says."""
        return F.normalizer(completion_mask, self.aggregate, max_length)

    def __call__(self, logprobs: Tensor, rollout: Rollout) -> LossOutput:
        """The loss of a micro-batch; see ``RLVRLoss``."""
        old = logprobs.detach() if rollout.old_logprobs is None else rollout.old_logprobs
        ratio = (logprobs - old).exp()  # (b, T)
        advantages = rollout.advantages[:, None]  # (b, 1)
        per_token = F.clipped_surrogate(ratio, advantages, self.clip_range, self.clip_range_high)
        clipped = ((ratio < 1 - self.clip_range) & (advantages < 0)) | (
            (ratio > 1 + self.clip_range_high) & (advantages > 0)
        )
        diagnostics = {"rlvr/clip_fraction": clipped.float(), "rlvr/ratio_mean": ratio}
        if self.needs_reference:
            kl = F.k3_kl(logprobs, _reference(rollout))
            per_token = per_token + self.kl_coef * kl
            diagnostics["rlvr/kl"] = kl
        mask = rollout.completion_mask
        loss = F.aggregate(per_token, mask, self.aggregate, normalizer=rollout.normalizer)
        metrics = {
            key: F.aggregate(value.detach(), mask, "token", normalizer=rollout.step_tokens)
            for key, value in diagnostics.items()
        }
        return LossOutput(loss, metrics)


def _reference(rollout: Rollout) -> Tensor:
    if rollout.ref_logprobs is None:
        raise ValueError(
            "kl_coef is not 0, so the rollout must carry ref_logprobs; see RLVRLoss.needs_reference"
        )
    return rollout.ref_logprobs
