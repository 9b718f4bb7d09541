"""What was left out and what was shrunk, in the curves and once per epoch in words."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from data_modules.stream import Batch


class _Count:
    """What was left out and what was shrunk, in one pass over the data."""

    def __init__(self) -> None:
        self.dropped = self.uncaptioned = self.held_out = self.shrunk = 0

    @property
    def left_out(self) -> int:
        """Because it is too long or has no caption."""
        return self.dropped + self.uncaptioned

    def add(self, batch: Any) -> None:
        """Add a batch; what was dropped before it, every rank and worker knows alike."""
        if isinstance(batch, Batch):
            self.dropped = max(self.dropped, batch.dropped)
            self.uncaptioned = max(self.uncaptioned, batch.uncaptioned)
            self.held_out = max(self.held_out, batch.held_out)
            self.shrunk += batch.shrunk

    def say(self, what: str) -> None:
        """A line, if there is something to say."""
        counts = {
            "examples left out, too long for max_length even with the least media": self.dropped,
            "examples left out, whose media have no caption": self.uncaptioned,
            "rows left out, which a benchmark tests on": self.held_out,
            "shown with smaller pictures or fewer frames": self.shrunk,
        }
        said = [f"{count} {happened}" for happened, count in counts.items() if count]
        if said:
            rank_zero_info(f"{what}: {'; '.join(said)}")


class DataReport(Callback):
    """Counts what is left out (too long, no caption, a benchmark's), or shown with less of its media."""

    def __init__(self) -> None:
        self.training, self.validation = _Count(), _Count()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count anew."""
        self.training = _Count()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a batch, and log."""
        self.training.add(batch)
        pl_module.log("data/dropped", float(self.training.left_out))
        pl_module.log("data/held_out", float(self.training.held_out))
        pl_module.log("data/shrunk", float(self.training.shrunk))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was left out, if anything was."""
        self.training.say(f"epoch {trainer.current_epoch}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count anew."""
        self.validation = _Count()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        self.validation.add(batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was left out, if anything was."""
        self.validation.say("validation")
