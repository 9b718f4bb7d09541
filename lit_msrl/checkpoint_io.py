"""Checkpoints that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO


class WholeCheckpoints(TorchCheckpointIO):
    """Writes under a temporary name, flushes, renames; a full disk leaves the previous checkpoint intact."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Save a checkpoint.

        Raises:
            OSError: It could not be written; nothing is left behind.
        """
        final = Path(path)
        partial = final.with_name(f".{final.name}.partial")
        try:
            super().save_checkpoint(checkpoint, partial, storage_options)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, final)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
            partial.unlink(missing_ok=True)
            raise OSError(
                f"checkpoint {final} could not be written: {error}; the one before it is intact"
            ) from error
