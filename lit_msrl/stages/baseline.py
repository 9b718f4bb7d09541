"""The paper's generative baseline: the same multimodal labels, without stages 1 and 2."""

from lit_msrl.stages.rlvr import RLVRModule
from lit_msrl.stages.sft import SFTModule


class BaselineSFT(SFTModule):
    """Cold start from the rationales of the multimodal labels."""

    name = "baseline_sft"


class Baseline(RLVRModule):
    """Stage 3's RL on stage 3's labels, from the baseline's own cold start."""

    name = "baseline"
