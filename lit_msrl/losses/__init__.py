"""RLVR losses, one file each. To be found by its short name on the command line a loss is imported here."""

from lit_msrl.losses.base import LossOutput, RLVRLoss
from lit_msrl.losses.grpo import GRPOLoss

__all__ = ["GRPOLoss", "LossOutput", "RLVRLoss"]
