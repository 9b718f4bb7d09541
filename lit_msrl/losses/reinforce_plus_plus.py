"""REINFORCE++."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_msrl import functional as F
from lit_msrl.losses.grpo import GRPOLoss


@dataclass(eq=False, kw_only=True)
class ReinforcePlusPlusLoss(GRPOLoss):
    """REINFORCE++: advantages are normalised over the whole step, on all ranks.

    Paper: https://arxiv.org/abs/2501.03262.

    The KL is in the loss; the paper has it in the reward, except with the group's baseline.

    Args:
        group_baseline: Subtract the group's mean first (REINFORCE++-baseline); else only the step's.

    Raises:
        ValueError: ``scale`` is not ``batch``.
    """

    group_baseline: bool = False
    scale: F.Scale = "batch"
    kl: F.KL = "k2"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale != "batch":
            raise ValueError(
                f"REINFORCE++ divides by the deviation of the batch, scale={self.scale} is another loss"
            )

    def advantages(self, rewards: Tensor, group_size: int) -> Tensor:
        """Zero mean and unit deviation over the step; ``(B,) -> (B,)``."""
        return F.batch_advantages(rewards, group_size if self.group_baseline else None)
