"""REINFORCE, leave one out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_msrl import functional as F
from lit_msrl.losses.grpo import GRPOLoss


@dataclass(eq=False, kw_only=True)
class RLOOLoss(GRPOLoss):
    """RLOO: a completion is one action, its baseline the mean of the others in the group.

    Paper: https://arxiv.org/abs/2402.14740.

    Over several iterations the completion's ratio, the product of its tokens', is clipped.
    """

    aggregate: F.Aggregation = "sequence"

    def advantages(self, rewards: Tensor, group_size: int) -> Tensor:
        """Reward less the mean of the others in the group; ``(B,) -> (B,)``."""
        return F.leave_one_out_advantages(rewards, group_size, scale=self.scale)

    def ratio(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        """One ratio per completion, ``(b, T)``."""
        return F.sequence_ratio(log_ratio, mask, mean=False)
