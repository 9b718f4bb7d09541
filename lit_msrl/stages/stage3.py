"""Stage 3: RL on a little real multimodal data; the judge writes ``<type><caption><think><answer>``."""

from lit_msrl.stages.rlvr import RLVRModule


class Stage3(RLVRModule):
    """RL on pictures and clips; all parts train."""

    name = "stage3"
