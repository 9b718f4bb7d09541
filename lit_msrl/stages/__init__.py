"""The paper's stages as LightningModules; one file each."""

from lit_msrl.stages.baseline import Baseline, BaselineSFT
from lit_msrl.stages.cmkd import CMKD
from lit_msrl.stages.discriminative import DiscriminativeRM
from lit_msrl.stages.rlvr import RLVRModule
from lit_msrl.stages.sft import SFTModule
from lit_msrl.stages.stage1 import Stage1, Stage1SFT
from lit_msrl.stages.stage2 import Stage2
from lit_msrl.stages.stage3 import Stage3

__all__ = [
    "CMKD",
    "Baseline",
    "BaselineSFT",
    "DiscriminativeRM",
    "RLVRModule",
    "SFTModule",
    "Stage1",
    "Stage1SFT",
    "Stage2",
    "Stage3",
]
