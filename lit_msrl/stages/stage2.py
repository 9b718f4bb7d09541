"""Stage 2a: judging carried over to captions, with the task-recognition reward and replay of text."""

from lit_msrl.stages.rlvr import RLVRModule


class Stage2(RLVRModule):
    """RL on preferences whose pictures and clips are replaced by captions; ``view`` is ``caption``."""

    name = "stage2"
