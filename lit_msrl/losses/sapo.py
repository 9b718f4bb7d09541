"""Soft adaptive policy optimization."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_msrl import functional as F
from lit_msrl.losses.policy_gradient import PolicyGradientLoss


@dataclass(eq=False, kw_only=True)
class SAPOLoss(PolicyGradientLoss):
    """SAPO: a sigmoid gate in place of the clip, ``-4 / tau sigmoid(tau (ratio - 1)) A``.

    Paper: https://arxiv.org/abs/2511.20347.

    Args:
        tau_positive: How sharply the gradient fades as the ratio leaves 1, for positive advantages.
        tau_negative: The same for negative ones; a little sharper, for they unsettle training more.
    """

    tau_positive: float = 1.0
    tau_negative: float = 1.05
    scale: F.Scale = "group"
    aggregate: F.Aggregation = "sequence"

    def surrogate(
        self, logprobs: Tensor, ratio: Tensor, advantages: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The soft gate; see ``PolicyGradientLoss``."""
        return F.soft_gate(ratio, advantages, self.tau_positive, self.tau_negative), {}
