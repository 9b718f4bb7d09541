"""One rank of two, and the second never comes back: ``python -m tests.scale.hanging STRATEGY FOLDER``."""

from __future__ import annotations

import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from lightning.pytorch.strategies import DDPStrategy

from lit_msrl.cli import run
from lit_msrl.strategies import FSDP2
from tests.scale.two_ranks import Spy, fit, mixed, stage

PATIENCE = timedelta(seconds=10)  # more than two starting processes differ by
STRATEGIES = {
    "ddp": lambda: DDPStrategy(process_group_backend="gloo", timeout=PATIENCE),
    "fsdp": lambda: FSDP2(timeout=PATIENCE),
}


class Hanging(Spy):
    """Takes a step; in the next, the second rank sleeps for ever."""

    def training_step(self, batch, batch_idx: int) -> None:
        if self.trainer.global_step == 1:
            print("second step", flush=True)
        if self.trainer.global_step == 1 and self.global_rank == 1:
            time.sleep(1e6)
        super().training_step(batch, batch_idx)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    strategy = STRATEGIES[sys.argv[1]]()
    run(lambda: fit(stage(Hanging), mixed(2), strategy, 2, Path(sys.argv[2])))
