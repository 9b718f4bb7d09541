"""The attention of the language model: one function for every way in which completions share a prompt."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "lit_msrl"


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention, chosen by the mask: FlexAttention for a ``BlockMask``, else torch's.

    Where heads share keys and a tensor masks them, the queries of these heads become query positions: torch's
    kernels take no mask together with grouped heads, and copying the keys for each head costs more.

    Args:
        module: The attention layer.
        query: ``(P, H, N, D)``.
        key: ``(P, K, S, D)``, of ``K`` heads that ``H / K`` query heads share.
        value: ``(P, K, S, D)``.
        attention_mask: ``(P, 1, N, S)``, or ``None`` for a causal mask.
        scaling: Of the scores.
        options: What transformers passes on.

    Returns:
        ``(P, N, H, D)``.
    """
    heads, shared = query.shape[1], query.shape[1] // key.shape[1]
    if isinstance(attention_mask, BlockMask):
        flex = flex_attention if query.device.type == "cpu" else _compiled_flex_attention()
        out = flex(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=shared > 1)
        return out.transpose(1, 2), None
    if attention_mask is None or shared == 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    folded = query.unflatten(1, (-1, shared)).flatten(2, 3)  # (P, K, H/K * N, D)
    out = nn.functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=attention_mask.repeat(1, 1, shared, 1), scale=scaling
    )
    return out.unflatten(2, (shared, -1)).reshape(query.shape[0], heads, -1, query.shape[-1]).transpose(
        1, 2
    ), None


@cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=True)  # else every new shape is compiled anew, for seconds


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
