"""Decoupled clip and dynamic sampling policy optimization."""

from __future__ import annotations

from dataclasses import dataclass

from lit_msrl import functional as F
from lit_msrl.losses.grpo import GRPOLoss


@dataclass(eq=False, kw_only=True)
class DAPOLoss(GRPOLoss):
    """DAPO (arXiv:2503.14476): GRPO that clips higher and weighs every token of the step the same.

    Its soft overlong punishment is ``model.overlong_buffer``, its overlong filtering ``mask_truncated``.
    Groups that teach nothing are left out of the backward, as with every loss; no others are drawn instead.
    """

    clip_range_high: float | None = 0.28
    scale: F.Scale = "group"
    aggregate: F.Aggregation = "token"
