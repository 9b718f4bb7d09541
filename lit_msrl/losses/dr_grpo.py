"""GRPO done right."""

from __future__ import annotations

from dataclasses import dataclass

from lit_msrl import functional as F
from lit_msrl.losses.grpo import GRPOLoss


@dataclass(eq=False, kw_only=True)
class DrGRPOLoss(GRPOLoss):
    """Dr. GRPO: GRPO that divides neither by a deviation nor by a completion's length.

    Paper: https://arxiv.org/abs/2503.20783.

    The loss of a step is divided by completions times ``max_completion``.
    """

    scale: F.Scale = "none"
    aggregate: F.Aggregation = "constant"
