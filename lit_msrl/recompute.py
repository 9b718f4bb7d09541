"""Gradient checkpointing of decoder layers that keep their keys and values.

transformers' own switches the cache off, but here prompts are read once and continued from their cache, under
autograd. So a layer becomes a function of its input and of the keys and values before it that also returns
the new ones; when it runs again in the backward pass, it writes to no cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache

Layer = Callable[..., Any]


def recompute(layers: Iterable[nn.Module]) -> None:
    """Let layers keep only their inputs for the backward pass (arXiv:1604.06174), and run again in it."""
    for number, layer in enumerate(layers):
        layer.forward = partial(_forward, layer.forward, number)


def _forward(
    layer: Layer, number: int, hidden: Tensor, *args: Any, past_key_values: Cache | None = None, **kwargs: Any
) -> Any:
    if not torch.is_grad_enabled():
        return layer(hidden, *args, past_key_values=past_key_values, **kwargs)
    before: Any = None if past_key_values is None else past_key_values.layers[number]
    past = (before.keys, before.values) if before is not None and before.is_initialized else (None, None)

    def run(
        hidden: Tensor, keys: Tensor | None, values: Tensor | None
    ) -> tuple[Any, Tensor | None, Tensor | None]:
        written = _Written(keys, values)
        cache = None if past_key_values is None else written
        return layer(hidden, *args, past_key_values=cache, **kwargs), written.keys, written.values

    output, keys, values = checkpoint(run, hidden, *past, use_reentrant=False, preserve_rng_state=False)
    if before is not None:
        if not before.is_initialized:
            before.lazy_initialization(keys, values)
        before.keys, before.values = keys, values
    return output


class _Written:
    """Keys and values of one layer, as far as its attention asks a cache for them."""

    def __init__(self, keys: Tensor | None, values: Tensor | None) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add the columns of this call, and return all."""
        self.keys = keys if self.keys is None else torch.cat([self.keys, keys], dim=-2)
        self.values = values if self.values is None else torch.cat([self.values, values], dim=-2)
        return self.keys, self.values
