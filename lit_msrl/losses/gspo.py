"""Group sequence policy optimization."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_msrl import functional as F
from lit_msrl.losses.grpo import GRPOLoss


@dataclass(eq=False, kw_only=True)
class GSPOLoss(GRPOLoss):
    """GSPO: GRPO whose ratio is the completion's, normalised by its length.

    Paper: https://arxiv.org/abs/2507.18071.

    The clip ranges are the paper's; they are small because the ratio is a geometric mean over tokens.
    """

    clip_range: float = 3e-4
    clip_range_high: float | None = 4e-4
    scale: F.Scale = "group"
    aggregate: F.Aggregation = "sequence"

    def ratio(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        """One ratio per completion, ``(b, T)``."""
        return F.sequence_ratio(log_ratio, mask, mean=True)
