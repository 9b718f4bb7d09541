"""Prompts as tensors, and prompts that the model has read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache


@dataclass
class PromptBatch:
    """Encoded prompts, padded on the left.

    Attributes:
        input_ids: ``(P, L)``.
        attention_mask: ``(P, L)``, 1 where a token is real.
        media: What the model's forward takes for the pictures of all prompts, e.g. ``pixel_values``; or
            ``features`` in their place (``GenerativeRMPolicy.see``).
        media_rows: Per name in ``media``, its rows per prompt, to cut the batch.
    """

    input_ids: Tensor
    attention_mask: Tensor
    media: dict[str, Tensor]
    media_rows: dict[str, list[int]]

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def select(self, rows: slice) -> PromptBatch:
        """Some of the prompts, with their pictures and without padding that none of them needs."""
        return self.pick(range(len(self))[rows])

    def pick(self, rows: Sequence[int]) -> PromptBatch:
        """Prompts in any order, also repeated, with their pictures."""
        media, media_rows = {}, {}
        for name, counts in self.media_rows.items():
            media_rows[name] = [counts[row] for row in rows]
            if sum(media_rows[name]):
                pieces = self.media[name].split(counts)
                media[name] = torch.cat([pieces[row] for row in rows])
        ids, mask = self.input_ids[list(rows)], self.attention_mask[list(rows)]
        first = int(mask.any(0).int().argmax())
        return PromptBatch(ids[:, first:], mask[:, first:], media, media_rows)

    def to(self, device: torch.device) -> PromptBatch:
        """Move all tensors."""
        media = {name: tensor.to(device) for name, tensor in self.media.items()}
        return PromptBatch(self.input_ids.to(device), self.attention_mask.to(device), media, self.media_rows)


@dataclass(frozen=True)
class Prefix:
    """Prompts the model has read, ready to be continued.

    Attributes:
        cache: Keys and values of the prompts.
        hidden: ``(P, D)``, the state at the last prompt token, which predicts the first completion token.
        positions: ``(P, L)`` or ``(3, P, L)``.
        attention_mask: ``(P, L)``.
    """

    cache: Cache
    hidden: Tensor
    positions: Tensor
    attention_mask: Tensor
