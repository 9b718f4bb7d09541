"""What a step does when memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from lightning import LightningModule

Result = TypeVar("Result")


def with_less_at_once(
    module: LightningModule, attempt: Callable[[], Result], halve: Callable[[], str]
) -> Result:
    """Try forward and backward of a step; when memory runs out, once more with half as much at once.

    Only on one rank: the others would be waiting in a collective for what this one had to give up.

    Args:
        module: Whose gradients are forgotten.
        attempt: Forward and backward, without the optimizer's step.
        halve: Makes the micro-batches half as large; returns what to say of it, or nothing if it cannot.

    Raises:
        torch.OutOfMemoryError: It cannot be halved (again), or memory runs out all the same.
    """
    try:
        return attempt()
    except torch.OutOfMemoryError:
        said = halve() if module.trainer.world_size == 1 else ""
        if not said:
            raise
    # not within the except clause: there the error still holds the tensors that are in the way
    warnings.warn(f"out of memory in step {module.global_step}; going on with {said}", stacklevel=2)
    module.zero_grad()
    torch.cuda.empty_cache()
    return attempt()
