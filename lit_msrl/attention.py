"""The attention of the language model: one function for every way in which completions share a prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "lit_msrl"


@dataclass(frozen=True)
class Shared:
    """Keys, or values, of prompts and of the completions that are being written after them.

    Attributes:
        prompt: ``(P, K, L, D)``, of ``K`` heads.
        own: ``(P, K, G, T, D)``, of ``G`` completions, which see the prompt and each its own ``T`` tokens.
    """

    prompt: Tensor
    own: Tensor


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor | Shared,
    value: Tensor | Shared,
    attention_mask: Tensor | BlockMask | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention, chosen by what is shared, and how: see ``Shared`` and ``BlockMask``.

    Where heads share keys and a tensor masks them, the queries of these heads become query positions: torch's
    kernels take no mask together with grouped heads, and copying the keys for each head costs more.

    Args:
        module: The attention layer.
        query: ``(P, H, N, D)``.
        key: ``(P, K, S, D)``, of ``K`` heads that ``H / K`` query heads share; or what a cache shares.
        value: The same.
        attention_mask: ``(P, 1, N, S)``, or ``None`` for a causal mask; for ``Shared``, of the prompt:
            ``(P, 1, 1, L)``.
        scaling: Of the scores.
        options: What transformers passes on.

    Returns:
        ``(P, N, H, D)``.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(key, Shared):
        assert isinstance(value, Shared)
        assert isinstance(attention_mask, Tensor)
        return _attend_shared(query * scale, key, value, attention_mask), None
    assert isinstance(value, Tensor)
    heads, shared = query.shape[1], query.shape[1] // key.shape[1]
    if isinstance(attention_mask, BlockMask):
        flex = flex_attention if query.device.type == "cpu" else _compiled_flex_attention()
        out = flex(query, key, value, block_mask=attention_mask, scale=scale, enable_gqa=shared > 1)
        return out.transpose(1, 2), None
    if attention_mask is None or shared == 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scale, **options)
    folded = query.unflatten(1, (-1, shared)).flatten(2, 3)  # (P, K, H/K * N, D)
    out = nn.functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=attention_mask.repeat(1, 1, shared, 1), scale=scale
    )
    return out.unflatten(2, (shared, -1)).reshape(query.shape[0], heads, -1, query.shape[-1]).transpose(
        1, 2
    ), None


def _attend_shared(query: Tensor, key: Shared, value: Shared, mask: Tensor) -> Tensor:
    """A token of each completion, ``(P, H, G, D)``, sees its prompt and its own; returns ``(P, G, H, D)``."""
    prompt = key.prompt.shape[-2]
    grouped = query.unflatten(1, (key.prompt.shape[1], -1)).transpose(2, 3)  # (P, K, G, H/K, D)
    to_prompt = grouped.flatten(2, 3) @ key.prompt.mT + mask
    to_own = grouped @ key.own.mT
    scores = torch.cat([to_prompt.view(*grouped.shape[:-1], -1), to_own], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    out = weights[..., prompt:] @ value.own
    out += (weights[..., :prompt].flatten(2, 3) @ value.prompt).view_as(out)
    return out.transpose(1, 2).flatten(2, 3)  # heads that share keys are neighbours


@cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=True)  # else every new shape is compiled anew, for seconds


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
