"""Checkpoints that several ranks wrote together (FSDP2): a folder, read here by one process.

Reading the weights runs no code that the folder brings along. To *resume* from such a folder is another
matter: torch reads the optimizer's settings with pickle, so resume only what you wrote yourself.
"""

from __future__ import annotations

import pickle
import warnings
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_state

METADATA, REST = ".metadata", "meta.pt"  # torch's name, Lightning's name
WEIGHTS = "state_dict."
HARMLESS = {
    ("pathlib", "PosixPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
}
HARMLESS_MODULES = ("torch.distributed.checkpoint.metadata",)


def is_sharded(path: Path) -> bool:
    """Whether this is a folder that several ranks wrote."""
    return (path / METADATA).is_file()


def load(path: Path) -> dict[str, Any]:
    """The weights, put together, and what else a stage keeps (not the optimizer).

    Raises:
        ValueError: It is no checkpoint, is incomplete, or would run code when it is read.
    """
    try:
        entries = _Reader(path).read_metadata().state_dict_metadata
        weights = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in entries.items()
            if name.startswith(WEIGHTS) and isinstance(entry, TensorStorageMetadata)
        }
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="torch.distributed is disabled"
            )  # that is what is meant
            load_state(weights, storage_reader=_Reader(path), no_dist=True)
        rest = torch.load(path / REST, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, CheckpointException) as error:
        raise ValueError(
            f"{path} is not a checkpoint of a stage ({type(error).__name__}: {error})"
        ) from error
    return rest | {"state_dict": {name.removeprefix(WEIGHTS): t for name, t in weights.items()}}


class _Reader(FileSystemReader):
    """torch's reader, which would unpickle anything, kept to the few classes a table of contents needs."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / METADATA).open("rb") as file:
            metadata = _Unpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member  # how Python 3.11.0 to 3.11.3 pickle a member of an enumeration
        is_dtype = module == "torch" and isinstance(torch.__dict__.get(name), torch.dtype)
        if is_dtype or module in HARMLESS_MODULES or (module, name) in HARMLESS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its table of contents asks for {module}.{name}")


def _member(kind: Any, name: str) -> Enum:
    if not (isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__):
        raise pickle.UnpicklingError(f"its table of contents asks for {name} of {kind}")
    return kind[name]
