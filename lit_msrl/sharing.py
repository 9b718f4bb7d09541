"""How the completions of a group continue their prompt while learning.

They are packed: a row holds some completions one after another, and a mask lets each see the prompt and
itself. With all of a group in one row the prompt's keys exist once; with fewer they are copied for each row,
but fewer queries meet keys that are not theirs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from lit_msrl.backbones import next_positions
from lit_msrl.batch import Prefix, PromptBatch

if TYPE_CHECKING:
    from lit_msrl.policy import GenerativeRMPolicy

Sharing = Literal["auto", "dense", "off"]
PROMPT, NOBODY = -1, -2  # owners of columns that are nobody's completion


def completion_states(policy: GenerativeRMPolicy, batch: PromptBatch, ids: Tensor, counted: Tensor) -> Tensor:
    """The states that predict the tokens that count, ``(n, D)``.

    ``policy.sharing`` says how. ``auto``: FlexAttention on a GPU, ``dense`` elsewhere. ``dense``: a mask as a
    tensor, and rows as long as costs least. ``off``: the prompt is read anew for each completion.

    Args:
        policy: The model.
        batch: ``P`` prompts.
        ids: ``(B, T)``, the ``G`` completions of a prompt adjacent.
        counted: ``(B, T)``.
    """
    if policy.sharing == "off":
        return plain_states(policy, batch, ids, counted)
    prefix, group = policy.read(batch), len(ids) // len(batch)
    if policy.sharing == "auto" and ids.device.type == "cuda":
        packing = Packing.of(ids, counted, group)
        return packed_states(policy, prefix, packing, block_mask(prefix, packing))
    width = policy.model.config.get_text_config().hidden_size
    packings = [Packing.of(ids, counted, size) for size in range(1, group + 1) if group % size == 0]
    packing = min(packings, key=lambda each: each.cost(prompt=batch.input_ids.shape[1], width=width))
    prefix = repeated(prefix, len(packing.ids) // len(batch))
    return packed_states(policy, prefix, packing, dense_mask(prefix, packing))


def plain_states(policy: GenerativeRMPolicy, batch: PromptBatch, ids: Tensor, counted: Tensor) -> Tensor:
    """A row per completion, prompt and pictures included; nothing is shared."""
    group = len(ids) // len(batch)
    rows = batch.pick([prompt for prompt in range(len(batch)) for _ in range(group)])
    whole = PromptBatch(
        torch.cat([rows.input_ids, ids], dim=1),
        torch.cat([rows.attention_mask, torch.ones_like(ids)], dim=1),
        rows.media,
        rows.media_rows,
    )
    states = policy.states(whole)
    return states[:, rows.input_ids.shape[1] - 1 : -1][counted]


def repeated(prefix: Prefix, times: int) -> Prefix:
    """Each prompt so many times."""
    if times == 1:
        return prefix
    prefix.cache.batch_repeat_interleave(times)
    return Prefix(
        prefix.cache,
        prefix.hidden.repeat_interleave(times, dim=0),
        prefix.positions.repeat_interleave(times, dim=-2),
        prefix.attention_mask.repeat_interleave(times, dim=0),
    )


def packed_states(
    policy: GenerativeRMPolicy, prefix: Prefix, packing: Packing, mask: Tensor | BlockMask
) -> Tensor:
    """The states that predict the tokens that count, ``(n, D)``, from packed rows."""
    out = policy.model.model(
        input_ids=packing.ids,
        attention_mask=mask,
        position_ids=next_positions(prefix.positions, packing.steps),
        past_key_values=prefix.cache,
        use_cache=True,
    )
    states = torch.cat([prefix.hidden[:, None], out.last_hidden_state], dim=1)  # (R, 1 + N, D)
    return states[packing.rows, packing.columns]


@dataclass(frozen=True)
class Packing:
    """Where in ``R`` rows the tokens of completions stand.

    Attributes:
        ids: ``(R, N)``, the tokens that are read: all but the last of a completion; one at least.
        owner: ``(R, N)``, which of the row's completions a token belongs to; ``NOBODY`` where it is padded.
        steps: ``(R, N)``, its place in the completion.
        rows: ``(n,)``, for each token that counts its row, and
        columns: ``(n,)`` the place of the state that predicts it, 0 for the end of the prompt.
    """

    ids: Tensor
    owner: Tensor
    steps: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, ids: Tensor, counted: Tensor, size: int) -> Packing:
        """Pack completions, ``(B, T)``, ``size`` to a row."""
        width = ids.shape[1]
        places = torch.arange(width, device=ids.device)
        last = (counted * places).amax(dim=1, keepdim=True)
        read = (places < last).view(-1, size * width)  # (R, size * T)
        length = max(int(read.sum(dim=1).max()), 1)
        order = (~read).int().argsort(dim=1, stable=True)[:, :length]
        real = read.gather(1, order)
        place = read.cumsum(dim=1).view(-1, size, width)  # 1 + column of a token that is read
        before = torch.cat([torch.zeros_like(place[..., :1]), place[..., :-1]], dim=-1).flatten(0, 1)
        return cls(
            ids=ids.reshape(-1, size * width).gather(1, order),
            owner=(order // width).masked_fill(~real, NOBODY),
            steps=order % width,
            rows=counted.nonzero()[:, 0] // size,
            columns=before[counted],
        )

    def cost(self, *, prompt: int, width: int) -> int:
        """What a dense mask over these rows costs, in multiply-adds of a layer over its width.

        About ``12 width`` for each token's linear maps, 2 for each pair of a query and a key, 70 for each key
        and value that is copied: to write a number and add up its gradient takes as long as 35 (fitted to the
        times in docs/adr/0005).
        """
        rows, length = self.ids.shape
        return rows * (length * (12 * width + 2 * (prompt + length)) + 70 * (prompt + length))


def dense_mask(prefix: Prefix, packing: Packing) -> Tensor:
    """What the row may see, ``(R, 1, N, L + N)``: 0, or the most negative number."""
    visible = _visible(prefix, packing)
    rows, queries, keys = (
        torch.arange(size, device=packing.ids.device)
        for size in (*packing.ids.shape, prefix.attention_mask.shape[1] + packing.ids.shape[1])
    )
    seen = visible(rows[:, None, None], None, queries[:, None], keys)[:, None]
    mask = torch.zeros(seen.shape, dtype=prefix.hidden.dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)


def block_mask(prefix: Prefix, packing: Packing) -> BlockMask:
    """The same for FlexAttention, which skips blocks that nobody sees."""
    (count, length), prompt = packing.ids.shape, prefix.attention_mask.shape[1]
    visible = _visible(prefix, packing)
    return create_block_mask(visible, count, None, length, prompt + length, device=str(packing.ids.device))


def _visible(prefix: Prefix, packing: Packing) -> Callable[..., Tensor]:
    """Whether a query sees a key: of its prompt, or of its own completion up to itself."""
    prompt = prefix.attention_mask.shape[1]
    read = torch.where(prefix.attention_mask.bool(), PROMPT, NOBODY)
    owner = torch.cat([read, packing.owner], dim=1)  # of keys, (R, L + N)

    def visible(row: Tensor, _head: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
        own = (owner[row, key] == owner[row, query + prompt]) & (key <= query + prompt)
        return (owner[row, key] == PROMPT) | own

    return visible


@torch.no_grad()
def check_sharing(
    policy: GenerativeRMPolicy,
    batch: PromptBatch,
    ids: Tensor,
    mask: Tensor,
    worst: Callable[[Tensor], Tensor] = lambda error: error,
) -> None:
    """Compare log-probabilities with plain rows; share less, and say so, where they differ.

    Args:
        policy: Its ``sharing`` may change.
        batch: Prompts.
        ids: ``(B, T)``, their completions.
        mask: ``(B, T)``.
        worst: The largest of all ranks, so that they agree.
    """
    asked, policy.sharing = policy.sharing, "off"
    expected, _ = policy.logprobs(batch, ids, mask)
    tolerance = 0.05 if policy.half else 1e-3  # in nats; what is known to go wrong is off by 0.07 and more
    for sharing in (asked, "dense"):
        policy.sharing, reason = sharing, ""
        try:
            found, _ = policy.logprobs(batch, ids, mask)
            error = (found - expected).abs().sum() / mask.sum().clamp(min=1)
        except RuntimeError as failure:  # what torch.compile raises where it cannot compile
            error, reason = torch.full_like(expected[0, 0], torch.inf), f" ({str(failure).splitlines()[0]})"
        error = float(worst(error))
        if error <= tolerance:  # not where it is NaN
            return
        warnings.warn(
            f"shared prompts ({sharing}) differ from plain rows by {error:.2g} nats a token{reason}; "
            f"going on with {'dense' if sharing == 'auto' else 'plain rows, which is slower'}",
            stacklevel=2,
        )
        if sharing == "dense":
            break
    policy.sharing = "off"
