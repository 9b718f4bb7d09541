"""What a run leaves to go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint


class Checkpoints(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` into the run's folder, every so many optimizer steps and at the end.

    Lightning's own callback saves at the end only if it has not saved before: of 30 steps with a checkpoint
    every 20 the last 10 would be lost.

    Args:
        every_n_train_steps: Optimizer steps between checkpoints.
    """

    def __init__(self, every_n_train_steps: int = 20) -> None:
        if every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps is {every_n_train_steps}; it must be at least 1")
        self.every_n_train_steps = every_n_train_steps
        self.saved = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What a resumed run starts from is saved already."""
        self.saved = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is due."""
        if trainer.global_step - self.saved >= self.every_n_train_steps:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what came after the last checkpoint."""
        if trainer.global_step > self.saved:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            folder = Path(trainer.log_dir or trainer.default_root_dir)
            trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
            self.saved = trainer.global_step
