"""What a run leaves to go on from."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info

from lit_msrl.checkpoint_io import flush_folder

LAST = "last.ckpt"


class Checkpoints(Checkpoint):
    """Writes ``checkpoints/step_<n>.ckpt`` into the run's folder; ``last.ckpt`` is a link to the newest.

    Every so many optimizer steps, at the end, and when the process is asked to stop: after SIGTERM or SIGUSR1
    (SLURM's ``--signal=USR1@120``) the step under way is finished and saved, and the run ends with exit code
    128 + signal. After SIGUSR1 a SLURM job also asks to be queued again. Lightning's own handler would save
    in the middle of a step, from where no run goes on as it would have.

    Args:
        every_n_train_steps: Optimizer steps between checkpoints.
        keep: Newest checkpoints to keep.
    """

    def __init__(self, every_n_train_steps: int = 20, keep: int = 2) -> None:
        if min(every_n_train_steps, keep) < 1:
            raise ValueError(
                f"every_n_train_steps is {every_n_train_steps} and keep is {keep}; they must be at least 1"
            )
        self.every_n_train_steps, self.keep = every_n_train_steps, keep
        self.saved = 0
        self.signal = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What a resumed run starts from is saved already; listen to signals."""
        self.saved = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):  # Lightning puts the old handlers back
                signal.signal(number, self._note)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is due or when asked to stop.

        Not at the very end of an epoch but a step later: from there Lightning miscounts the next batches.
        """
        asked = self._asked(trainer)  # on all ranks, always
        due = trainer.global_step // self.every_n_train_steps > self.saved // self.every_n_train_steps
        epoch_ends = trainer.is_last_batch and batch_idx > 0
        if (due or (asked and trainer.global_step > self.saved)) and not epoch_ends:
            self._save(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop when asked to, now that the step before is saved and logged."""
        if trainer.global_step == self.saved and (asked := self._asked(trainer)):
            self._stop(trainer, asked)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop when asked to, rather than judge to the end."""
        if asked := self._asked(trainer):
            if trainer.global_step > self.saved:
                self._save(trainer)
            self._stop(trainer, asked)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what came after the last checkpoint."""
        if trainer.global_step > self.saved:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"
        path = folder / f"step_{trainer.global_step}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)  # "not only the weights"; says nothing of loading
        self.saved = trainer.global_step
        if trainer.is_global_zero:
            point(folder / LAST, path.name)
            for old in sorted(folder.glob("step_*.ckpt"), key=_step)[: -self.keep]:
                shutil.rmtree(old) if old.is_dir() else old.unlink()

    # ---- signals -------------------------------------------------------------------------------------------

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def _asked(self, trainer: L.Trainer) -> int:
        """The signal that any rank was sent, 0 for none."""
        number = torch.tensor(self.signal, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(number, reduce_op="max"))

    def _stop(self, trainer: L.Trainer, number: int) -> None:
        name = signal.Signals(number).name
        rank_zero_info(
            f"{name}: stopped after step {trainer.global_step}, which is saved; "
            "run the same command with --ckpt_path=last to go on"
        )
        job = os.environ.get("SLURM_JOB_ID")
        if number == signal.SIGUSR1 and job and trainer.is_global_zero:
            subprocess.run(["scontrol", "requeue", job], check=True)
        raise SystemExit(128 + number)


def point(link: Path, target: str) -> None:
    """Make a link point to a file next to it; at every moment it points to the old or the new one."""
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    os.replace(partial, link)
    flush_folder(link.parent)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))
