"""Weights on their way to a sampler in another process: through a folder, sent by the first rank.

And what ranks tell each other of that and of other work that one of them may fail at alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lit_msrl.engines.weights import Named

SHARD = 2**31  # bytes that are held in host memory at once
T = TypeVar("T")


def write_shards(weights: Iterator[Named], folder: Path, dtype: torch.dtype) -> dict[str, str]:
    """Write weights in several files, so that the host never holds them all.

    Args:
        weights: Names and tensors.
        folder: Gets ``model-<n>.safetensors``.
        dtype: What they are written in.

    Returns:
        By the SHA-256 digest of its bytes the name of each weight that no other is equal to.

    Raises:
        OSError: They could not be written.
    """
    names: dict[str, list[str]] = {}
    shard: dict[str, Tensor] = {}
    numbers = itertools.count(1)
    for name, tensor in weights:
        own = tensor.to("cpu", dtype, copy=True).contiguous()  # a tied head is written twice
        shard[name] = own
        names.setdefault(hashlib.sha256(own.view(-1).view(torch.uint8).numpy().data).hexdigest(), []).append(
            name
        )
        if sum(t.nbytes for t in shard.values()) >= SHARD:
            _flush(shard, folder / f"model-{next(numbers):05}.safetensors")
    _flush(shard, folder / f"model-{next(numbers):05}.safetensors")
    return {digest: those[0] for digest, those in names.items() if len(those) == 1}


def _flush(shard: dict[str, Tensor], path: Path) -> None:
    if shard:
        with writing(path.parent):
            save_file(shard, path, metadata={"format": "pt"})
        shard.clear()


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What fails while weights are written ends in one line.

    Raises:
        OSError: It failed.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"weights for vLLM could not be written to {folder}: {error}; make room, or name another folder "
            "with the engine's folder, and go on with --ckpt_path=last"
        ) from error


def is_first() -> bool:
    """Whether this is the first rank, or the only process."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def from_first(act: Callable[[], T]) -> T:
    """What the first rank gets, on all ranks; its error ends all of them."""
    if _alone():
        return act()
    result, error = _attempt(act) if is_first() else (None, None)
    box: list[Any] = [result, _told(error)]
    torch.distributed.broadcast_object_list(box, src=0)
    if error or box[1]:
        raise error or box[1]
    return box[0]


def on_each(act: Callable[[], T]) -> T:
    """What this rank gets; an error of any rank ends all of them, else the others would wait for it.

    Args:
        act: Even where it fails it leaves no rank waiting in what it does together with others.
    """
    if _alone():
        return act()
    result, error = _attempt(act)
    errors: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(errors, _told(error))
    for one in (error, *errors):
        if one is not None:
            raise one
    return result  # type: ignore[return-value]


def _alone() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1


def _attempt(act: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return act(), None
    except Exception as error:  # whatever it is, the other ranks must not wait
        return None, error


def _told(error: Exception | None) -> Exception | None:
    """An error as other ranks can read it: not all can be pickled."""
    if error is None or isinstance(error, OSError | ValueError):
        return error
    return RuntimeError(f"another rank failed: {type(error).__name__}: {error}")
