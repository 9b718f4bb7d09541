"""Decoupled clip and dynamic sampling policy optimization."""

from __future__ import annotations

from dataclasses import dataclass

from lit_msrl import functional as F
from lit_msrl.losses.grpo import GRPOLoss


@dataclass(eq=False, kw_only=True)
class DAPOLoss(GRPOLoss):
    """DAPO: GRPO that clips higher and weighs every token of the step the same.

    Paper: https://arxiv.org/abs/2503.14476.

    Its soft overlong punishment is ``model.overlong_buffer``, its overlong filtering ``mask_truncated``.
    Its dynamic sampling is ``model.max_rounds``, as with every loss.
    """

    clip_range_high: float | None = 0.28
    scale: F.Scale = "group"
    aggregate: F.Aggregation = "token"
