"""How the completions of a group continue their prompt while learning: three ways to the same numbers."""

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

    ``policy.sharing`` says how. ``auto``: FlexAttention on a GPU, ``dense`` elsewhere. ``dense``: a group
    packed into a row, or the prompt's keys repeated for each completion, whichever costs less. ``off``: the
    prompt is read anew for each completion.

    Args:
        policy: The model.
        batch: ``P`` prompts.
        ids: ``(B, T)``, the ``G`` completions of a prompt adjacent.
        counted: ``(B, T)``.
    """
    if policy.sharing == "off":
        return plain_states(policy, batch, ids, counted)
    prefix, packing = policy.read(batch), Packing.of(ids, counted, len(batch))
    if policy.sharing == "auto" and ids.device.type == "cuda":
        return packed_states(policy, prefix, packing, block_mask(prefix, packing))
    width = policy.model.config.get_text_config().hidden_size
    alone = ids.shape[1] == 1  # the layers run twice all the same: sharded, they must do so on every rank
    if alone or packing.pays(prompt=batch.input_ids.shape[1], width=width):
        return packed_states(policy, prefix, packing, dense_mask(prefix, packing))
    return repeated_states(policy, prefix, ids, counted)


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


def repeated_states(policy: GenerativeRMPolicy, prefix: Prefix, ids: Tensor, counted: Tensor) -> Tensor:
    """A row per completion that continues a copy of its prompt's keys and values."""
    count, group = len(prefix.hidden), len(ids) // len(prefix.hidden)
    hidden = prefix.hidden.repeat_interleave(group, dim=0)[:, None]
    if ids.shape[1] > 1:
        prefix.cache.batch_repeat_interleave(group)
        steps = torch.arange(ids.shape[1] - 1, device=ids.device).expand(count, -1)
        out = policy.model.model(
            input_ids=ids[:, :-1],
            attention_mask=torch.cat(
                [prefix.attention_mask.repeat_interleave(group, dim=0), torch.ones_like(ids[:, :-1])], dim=1
            ),
            position_ids=next_positions(prefix.positions, steps).repeat_interleave(group, dim=-2),
            past_key_values=prefix.cache,
            use_cache=True,
        )
        hidden = torch.cat([hidden, out.last_hidden_state], dim=1)
    return hidden[counted]


def packed_states(
    policy: GenerativeRMPolicy, prefix: Prefix, packing: Packing, mask: Tensor | BlockMask
) -> Tensor:
    """A row per group: its completions one after another, without padding between them."""
    out = policy.model.model(
        input_ids=packing.ids,
        attention_mask=mask,
        position_ids=next_positions(prefix.positions, packing.steps),
        past_key_values=prefix.cache,
        use_cache=True,
    )
    states = torch.cat([prefix.hidden[:, None], out.last_hidden_state], dim=1)  # (P, 1 + N, D)
    return states[packing.rows, packing.columns]


@dataclass(frozen=True)
class Packing:
    """Where in one row per prompt the tokens of its group stand.

    Attributes:
        ids: ``(P, N)``, all tokens of the group that are read: not the last of a completion.
        owner: ``(P, N)``, the completion a token belongs to; ``NOBODY`` where the row is padded.
        steps: ``(P, N)``, its place in the completion.
        rows: ``(n,)``, for each token that counts its row, and
        columns: ``(n,)`` the place of the state that predicts it, 0 for the end of the prompt.
        repeated: Tokens that a row per completion would read, padding included.
    """

    ids: Tensor
    owner: Tensor
    steps: Tensor
    rows: Tensor
    columns: Tensor
    repeated: int

    @classmethod
    def of(cls, ids: Tensor, counted: Tensor, prompts: int) -> Packing:
        """Pack ``(B, T)`` completions."""
        group, width = len(ids) // prompts, ids.shape[1]
        places = torch.arange(width, device=ids.device)
        last = (counted * places).amax(dim=1, keepdim=True)
        read = (places < last).view(prompts, -1)  # (P, G * T)
        length = max(int(read.sum(dim=1).max()), 1)
        order = (~read).int().argsort(dim=1, stable=True)[:, :length]
        real = read.gather(1, order)
        place = read.cumsum(dim=1).view(prompts, group, width)  # 1 + column of a token that is read
        before = torch.cat([torch.zeros_like(place[..., :1]), place[..., :-1]], dim=-1).flatten(0, 1)
        return cls(
            ids=ids.reshape(prompts, -1).gather(1, order),
            owner=(order // width).masked_fill(~real, NOBODY),
            steps=order % width,
            rows=counted.nonzero()[:, 0] // group,
            columns=before[counted],
            repeated=group * (width - 1),
        )

    def pays(self, *, prompt: int, width: int) -> bool:
        """Whether a dense mask over the packed row costs less than copying the prompt's keys.

        Multiply-adds of a layer, in units of its width: about ``12 width`` for each token's linear maps and 2
        for each pair of a query and a key. A number that is copied costs as much as 30 of them (measured).
        """
        length = self.ids.shape[1]
        group = int(self.owner.max()) + 1
        keys = prompt + self.repeated // max(group, 1)
        packed = length * (12 * width + 2 * (prompt + length))
        repeated = self.repeated * (12 * width + 2 * keys) + 60 * group * keys
        return packed < repeated


def dense_mask(prefix: Prefix, packing: Packing) -> Tensor:
    """What the row may see, ``(P, 1, N, L + N)``: 0, or the most negative number."""
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
    owner = torch.cat([read, packing.owner], dim=1)  # of keys, (P, L + N)

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
    half = policy.head.weight.dtype in (torch.bfloat16, torch.float16)
    tolerance = 0.05 if half else 1e-3  # in nats; what is known to go wrong is off by 0.07 and more
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
