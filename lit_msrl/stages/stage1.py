"""Stage 1: reward reasoning learned from text alone (paper, section 3.1)."""

from lit_msrl.stages.rlvr import RLVRModule
from lit_msrl.stages.sft import SFTModule


class Stage1SFT(SFTModule):
    """1a, the cold start: imitate the rationales of text preferences."""

    name = "stage1_sft"


class Stage1(RLVRModule):
    """1b: RL on text preferences; vision tower and projector are frozen by the configuration."""

    name = "stage1"
