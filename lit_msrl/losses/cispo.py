"""Clipped importance-sampling policy optimization."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_msrl import functional as F
from lit_msrl.losses.policy_gradient import PolicyGradientLoss


@dataclass(eq=False, kw_only=True)
class CISPOLoss(PolicyGradientLoss):
    """CISPO (MiniMax-M1): ``-sg(min(ratio, 1 + clip_range_high)) A log p`` per token.

    Paper: https://arxiv.org/abs/2506.13585.

    It clips the weight and not the update: every token keeps a gradient.

    Args:
        clip_range_high: How far the weight may rise above 1 (weights up to 5: ScaleRL, arXiv:2510.13786).
    """

    clip_range_high: float = 4.0
    scale: F.Scale = "group"

    def surrogate(
        self, logprobs: Tensor, ratio: Tensor, advantages: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """REINFORCE with clipped weights; see ``PolicyGradientLoss``."""
        weight = ratio.detach().clamp(max=1 + self.clip_range_high)
        clipped = ratio > 1 + self.clip_range_high
        return -weight * advantages * logprobs, {"rlvr/clip_fraction_high": clipped.float()}
