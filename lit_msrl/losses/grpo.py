"""Group relative policy optimization."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_msrl import functional as F
from lit_msrl.losses.policy_gradient import PolicyGradientLoss


@dataclass(eq=False)
class GRPOLoss(PolicyGradientLoss):
    """GRPO: ``-min(ratio A, clip(ratio) A)`` per token.

    Paper: https://arxiv.org/abs/2402.03300.

    On-policy its gradient is that of REINFORCE with the group's mean as baseline.

    Args:
        clip_range: How far the ratio may fall below 1.
        clip_range_high: How far it may rise above 1; ``None`` for the same (DAPO: 0.28).
    """

    clip_range: float = 0.2
    clip_range_high: float | None = None

    def surrogate(
        self, logprobs: Tensor, ratio: Tensor, advantages: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO's clipped objective; see ``PolicyGradientLoss``."""
        low = self.clip_range
        high = low if self.clip_range_high is None else self.clip_range_high
        clipped = {
            "rlvr/clip_fraction_low": (ratio < 1 - low) & (advantages < 0),
            "rlvr/clip_fraction_high": (ratio > 1 + high) & (advantages > 0),
        }
        per_token = F.clipped_surrogate(ratio, advantages, low, high)
        return per_token, {key: where.float() for key, where in clipped.items()}
