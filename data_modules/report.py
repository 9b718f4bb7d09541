"""What the media budget did, in the curves and once per epoch in words."""

from __future__ import annotations

from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info
from lightning.pytorch import Callback, LightningModule, Trainer

from data_modules.stream import Batch


class DataReport(Callback):
    """Counts training examples left out, or shown with less of their media, to fit ``max_length``."""

    def __init__(self) -> None:
        self.dropped = self.shrunk = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count anew."""
        self.dropped = self.shrunk = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a batch; what was dropped before it, every rank and worker knows alike."""
        if not isinstance(batch, Batch):
            return
        self.dropped = max(self.dropped, batch.dropped)
        self.shrunk += batch.shrunk
        pl_module.log("data/dropped", float(self.dropped))
        pl_module.log("data/shrunk", float(self.shrunk))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was left out, if anything was."""
        if self.dropped or self.shrunk:
            rank_zero_info(
                f"epoch {trainer.current_epoch}: {self.dropped} examples left out, too long for max_length"
                f" even with the least media; {self.shrunk} shown with smaller pictures or fewer frames"
            )
