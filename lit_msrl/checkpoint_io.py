"""Checkpoints that are there whole or not at all, and hold nothing that runs when it is read."""

from __future__ import annotations

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO


class WholeCheckpoints(TorchCheckpointIO):
    """Writes under a temporary name, flushes file and folder, renames; a full disk leaves the one before.

    Reads tensors and plain values only, whatever the caller asks for: a checkpoint from elsewhere cannot run
    code.
    """

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
            final.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, final)
            flush_folder(final.parent)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
            partial.unlink(missing_ok=True)
            raise OSError(
                f"checkpoint {final} could not be written: {error}; the one before it is intact"
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any | None = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Load a checkpoint; ``weights_only`` is always on.

        Raises:
            ValueError: The file is no checkpoint, is cut off, or holds more than tensors and plain values.
        """
        return load(Path(path), map_location)


def load(path: Path, map_location: Any | None = "cpu") -> dict[str, Any]:
    """What a checkpoint holds: tensors and plain values.

    Raises:
        ValueError: There is no such file, it is no checkpoint, is cut off, or holds more than that.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(
            f"{path} is not a checkpoint of a stage (it is damaged, or holds more than tensors and plain "
            "values, which is not read because it could run code)"
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ValueError(f"{path} is not a checkpoint of a stage (it holds no weights)")
    return content


def flush_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
