"""Sampling with the policy's own weights: the G completions of a prompt are G query positions of one row.

The keys and values of a prompt, and its pictures, exist once; each step feeds one token of every completion
of the group, which meets the keys of the prompt and of its own completion only. Finished ones leave; the last
long completion is written alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from lit_msrl.attention import Shared
from lit_msrl.backbones import next_positions
from lit_msrl.engines.base import Completions, RolloutEngine, Sampling
from lit_msrl.policy import GenerativeRMPolicy, Prefix, PromptBatch
from lit_msrl.prompts import JudgingPrompt
from lit_msrl.strategies import gathered


class HFEngine(RolloutEngine):
    """Samples with transformers, in the training process; finished completions cost nothing."""

    @torch.no_grad()
    def generate(
        self,
        policy: GenerativeRMPolicy,
        prompts: Sequence[JudgingPrompt],
        batch: PromptBatch,
        *,
        sampling: Sampling,
        seed: int,
    ) -> Completions:
        """See ``RolloutEngine``."""
        was_training = policy.training
        policy.eval()  # with gradient checkpointing, transformers keeps no cache in training mode
        try:
            generator = torch.Generator(policy.device).manual_seed(seed)
            with gathered(policy):
                return _decode(policy, policy.read(batch), sampling, generator)
        finally:
            policy.train(was_training)


def _decode(
    policy: GenerativeRMPolicy, prefix: Prefix, sampling: Sampling, generator: torch.Generator
) -> Completions:
    count, group = len(prefix.hidden), sampling.group_size
    shape = (count * group, sampling.max_length)
    ids = torch.full(shape, policy.tokenizer.pad_token_id, device=policy.device)
    logprobs = torch.zeros(shape, dtype=torch.float32, device=policy.device)
    mask = torch.zeros(shape, dtype=torch.bool, device=policy.device)
    slots = torch.arange(count * group, device=policy.device).view(
        count, group
    )  # the completions being written
    is_open = torch.ones_like(slots, dtype=torch.bool)
    state = _GroupState(prefix, group, sampling.max_length)
    hidden = prefix.hidden[:, None].expand(-1, group, -1)
    for step in range(sampling.max_length):
        tokens, drawn = _draw(policy.scores(hidden), sampling, generator)  # (p, g)
        written = slots[is_open]
        ids[written, step], logprobs[written, step] = tokens[is_open], drawn[is_open]
        mask[written, step] = True
        is_open = is_open & (tokens != policy.tokenizer.eos_token_id)
        if not is_open.any() or step + 1 == sampling.max_length:
            break
        rows, columns = _compact(is_open)
        if columns.numel() <= 0.75 * is_open.numel():  # not each time: it copies what has been written
            slots, is_open, tokens = (each[rows].gather(1, columns) for each in (slots, is_open, tokens))
            state.keep(rows, columns)
        hidden = state.advance(policy, tokens)
    width = int(mask.any(dim=0).sum())
    return Completions(ids[:, :width], mask[:, :width], logprobs[:, :width])


def _compact(is_open: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that have an open column, ``(p,)``, and their open columns, ``(p, g)``; some others fill up.

    Example:
        >>> _compact(torch.tensor([[False, True, False], [False, False, False], [True, True, False]]))
        (tensor([0, 2]), tensor([[1, 0],
                [0, 1]]))
    """
    counts = is_open.sum(dim=1)
    rows = counts.nonzero()[:, 0]
    return rows, (~is_open[rows]).int().argsort(dim=1, stable=True)[:, : int(counts.max())]


def _draw(scores: Tensor, sampling: Sampling, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens and their log-probabilities; the most probable ones at temperature 0."""
    logprobs = (scores.float() / (sampling.temperature or 1.0)).log_softmax(-1)
    if sampling.truncated:
        logprobs = _truncate(logprobs, sampling)
    if sampling.temperature == 0:
        tokens = logprobs.argmax(-1)
    else:
        below = logprobs.exp().cumsum(-1, dtype=torch.float64)  # in 32 bits rare tokens would be lost
        point = torch.rand(*below.shape[:-1], 1, generator=generator, dtype=below.dtype, device=below.device)
        found = torch.searchsorted(below, point * below[..., -1:], right=True)[..., 0]
        tokens = found.clamp(max=below.shape[-1] - 1)  # where rounding carried the point to the very end
    return tokens, logprobs.gather(-1, tokens[..., None])[..., 0]


def _truncate(logprobs: Tensor, sampling: Sampling) -> Tensor:
    """What top-k, then top-p leave of a distribution, again with sum 1."""
    if 0 < sampling.top_k < logprobs.shape[-1]:
        least = logprobs.topk(sampling.top_k).values[..., -1:]
        logprobs = logprobs.masked_fill(logprobs < least, -torch.inf).log_softmax(-1)
    if sampling.top_p < 1:
        ranked, tokens = logprobs.sort(dim=-1, descending=True)
        before = ranked.exp().cumsum(-1) - ranked.exp()  # of the more probable tokens
        dropped = (before >= sampling.top_p).scatter(-1, tokens, before >= sampling.top_p)
        logprobs = logprobs.masked_fill(dropped, -torch.inf).log_softmax(-1)
    return logprobs


class _GroupState:
    """Keys, values and positions of the completions that are being written."""

    def __init__(self, prefix: Prefix, group: int, max_length: int) -> None:
        self.step, self.positions = 0, prefix.positions
        unseen = ~prefix.attention_mask.bool()[:, None, None]  # (P, 1, 1, L)
        self.mask = torch.zeros(unseen.shape, dtype=prefix.hidden.dtype, device=unseen.device)
        self.mask.masked_fill_(unseen, torch.finfo(self.mask.dtype).min)
        self.cache = Cache(
            layers=[_SharedLayer(layer, group, max_length) for layer in prefix.cache.layers]  # type: ignore[arg-type]
        )

    def keep(self, rows: Tensor, columns: Tensor) -> None:
        """Keep some prompts, ``(p,)``, and of each some completions, ``(p, g)``."""
        self.mask, self.positions = self.mask[rows], self.positions[..., rows, :]
        for layer in self.cache.layers:
            layer.keep(rows, columns)  # type: ignore[attr-defined]

    def advance(self, policy: GenerativeRMPolicy, tokens: Tensor) -> Tensor:
        """Write a token per completion, ``(p, g)``; returns states that predict the next, ``(p, g, D)``."""
        steps = torch.full_like(tokens, self.step)
        self.step += 1
        out = policy.model.model(
            input_ids=tokens,
            attention_mask=self.mask,
            position_ids=next_positions(self.positions, steps),
            past_key_values=self.cache,
            use_cache=True,
        )
        return out.last_hidden_state


class _SharedLayer(DynamicLayer):
    """A cache layer whose prompt exists once, with room for all that its completions will write."""

    def __init__(self, prompt: Any, group: int, max_length: int) -> None:
        super().__init__()
        self.lazy_initialization(prompt.keys, prompt.values)
        self.prompt_keys, self.prompt_values, self.length = prompt.keys, prompt.values, 0
        count, heads, _, width = prompt.keys.shape
        self.own_keys = prompt.keys.new_empty(count, heads, group, max_length, width)
        self.own_values = prompt.values.new_empty(count, heads, group, max_length, width)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Shared, Shared]:
        """Write a token of each completion, ``(p, K, g, D)``; returns what each may see."""
        self.own_keys[..., self.length, :] = key_states
        self.own_values[..., self.length, :] = value_states
        self.length += 1
        return (
            Shared(self.prompt_keys, self.own_keys[..., : self.length, :]),
            Shared(self.prompt_values, self.own_values[..., : self.length, :]),
        )

    def get_seq_length(self) -> int:
        """Of a prompt and a completion."""
        return self.prompt_keys.shape[-2] + self.length

    def keep(self, rows: Tensor, columns: Tensor) -> None:
        """Keep some rows, ``(p,)``, and of each some of its completions, ``(p, g)``."""
        if len(rows) < len(self.prompt_keys):
            self.prompt_keys, self.prompt_values = self.prompt_keys[rows], self.prompt_values[rows]
        self.own_keys = self.own_keys[rows[:, None], :, columns].transpose(1, 2).contiguous()
        self.own_values = self.own_values[rows[:, None], :, columns].transpose(1, 2).contiguous()
