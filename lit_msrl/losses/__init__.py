"""RLVR losses, one file each. To be found by its short name on the command line a loss is imported here."""

from lit_msrl.losses.base import LossOutput, RLVRLoss
from lit_msrl.losses.cispo import CISPOLoss
from lit_msrl.losses.dapo import DAPOLoss
from lit_msrl.losses.dr_grpo import DrGRPOLoss
from lit_msrl.losses.grpo import GRPOLoss
from lit_msrl.losses.gspo import GSPOLoss
from lit_msrl.losses.policy_gradient import PolicyGradientLoss
from lit_msrl.losses.reinforce_plus_plus import ReinforcePlusPlusLoss
from lit_msrl.losses.rloo import RLOOLoss
from lit_msrl.losses.sapo import SAPOLoss

__all__ = [
    "CISPOLoss",
    "DAPOLoss",
    "DrGRPOLoss",
    "GRPOLoss",
    "GSPOLoss",
    "LossOutput",
    "PolicyGradientLoss",
    "RLOOLoss",
    "RLVRLoss",
    "ReinforcePlusPlusLoss",
    "SAPOLoss",
]
