"""Sampling with the policy's own weights: the G completions of a prompt are G query positions of one row.

The keys and values of a prompt, and its pictures, exist once; each step feeds one token of every completion
of the group, and a mask lets it see the prompt and its own completion's columns only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from lit_msrl.backbones import next_positions
from lit_msrl.engines.base import Completions, RolloutEngine, Sampling
from lit_msrl.policy import GenerativeRMPolicy, Prefix, PromptBatch
from lit_msrl.prompts import JudgingPrompt


class HFEngine(RolloutEngine):
    """Samples with transformers, in the training process; rows whose group has finished are dropped."""

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
            return _decode(
                policy, policy.read(batch), sampling, torch.Generator(policy.device).manual_seed(seed)
            )
        finally:
            policy.train(was_training)


def _decode(
    policy: GenerativeRMPolicy, prefix: Prefix, sampling: Sampling, generator: torch.Generator
) -> Completions:
    count, group, eos = len(prefix.hidden), sampling.group_size, policy.tokenizer.eos_token_id
    ids = torch.full((count, group, sampling.max_length), policy.tokenizer.pad_token_id, device=policy.device)
    logprobs = torch.zeros(ids.shape, device=policy.device)
    mask = torch.zeros(ids.shape, dtype=torch.bool, device=policy.device)
    rows = torch.arange(count, device=policy.device)  # prompts still being continued
    done = torch.zeros(count, group, dtype=torch.bool, device=policy.device)
    state = _GroupState(prefix, group, sampling.max_length)
    hidden = prefix.hidden[:, None].expand(-1, group, -1)
    for step in range(sampling.max_length):
        tokens, drawn = _draw(policy.scores(hidden), sampling, generator)  # (p, G)
        tokens = tokens.masked_fill(done, policy.tokenizer.pad_token_id)
        ids[rows, :, step], logprobs[rows, :, step], mask[rows, :, step] = (
            tokens,
            drawn.masked_fill(done, 0),
            ~done,
        )
        done = done | (tokens == eos)
        open_rows = ~done.all(dim=1)
        if not open_rows.any() or step + 1 == sampling.max_length:
            break
        if open_rows.sum() <= 0.75 * len(rows):
            rows, tokens, done = rows[open_rows], tokens[open_rows], done[open_rows]
            state.keep(open_rows)
        hidden = state.advance(policy, tokens)
    width = int(mask.any(dim=(0, 1)).sum())
    return Completions(*(tensor[..., :width].flatten(0, 1) for tensor in (ids, mask, logprobs)))


def _draw(scores: Tensor, sampling: Sampling, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens and their log-probabilities; the most probable ones at temperature 0."""
    logprobs = (scores.float() / (sampling.temperature or 1.0)).log_softmax(-1)
    if sampling.truncated:
        logprobs = _truncate(logprobs, sampling)
    if sampling.temperature == 0:
        tokens = logprobs.argmax(-1)
    else:
        noise = torch.empty_like(logprobs).exponential_(generator=generator)
        tokens = (logprobs.exp() / noise).argmax(-1)  # the Gumbel trick
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
    """Keys, values and positions of the groups that are being written."""

    def __init__(self, prefix: Prefix, group: int, max_length: int) -> None:
        self.group, self.step, self.positions = group, 0, prefix.positions
        self.prompt_length = prefix.attention_mask.shape[1]
        columns = group * max_length
        self.cache = Cache(layers=[_RoomyLayer(layer, columns) for layer in prefix.cache.layers])  # type: ignore[arg-type]
        own = torch.eye(group, dtype=torch.bool, device=prefix.hidden.device)
        own = own.repeat(1, max_length)  # (G, T * G)
        prompt = prefix.attention_mask.bool()[:, None, None].expand(-1, -1, group, -1)
        seen = torch.cat([prompt, own.expand(len(prompt), 1, -1, -1)], dim=-1)
        self.mask = torch.zeros(seen.shape, dtype=prefix.hidden.dtype, device=seen.device)
        self.mask.masked_fill_(~seen, torch.finfo(prefix.hidden.dtype).min)

    def keep(self, rows: Tensor) -> None:
        """Forget prompts whose completions are all finished."""
        self.mask = self.mask[rows]
        self.positions = self.positions[..., rows, :]
        for layer in self.cache.layers:
            layer.keep(rows)  # type: ignore[attr-defined]

    def advance(self, policy: GenerativeRMPolicy, tokens: Tensor) -> Tensor:
        """Write a token per completion, ``(p, G)``; returns states that predict the next, ``(p, G, D)``."""
        steps = torch.full_like(tokens, self.step)
        self.step += 1
        out = policy.model.model(
            input_ids=tokens,
            attention_mask=self.mask[..., : self.prompt_length + self.step * self.group],
            position_ids=next_positions(self.positions, steps),
            past_key_values=self.cache,
            use_cache=True,
        )
        return out.last_hidden_state


class _RoomyLayer(DynamicLayer):
    """A cache layer with room for all that will be written, so that a step copies nothing."""

    def __init__(self, prompt: Any, columns: int) -> None:
        super().__init__()
        self.length = prompt.keys.shape[-2]
        shape = (*prompt.keys.shape[:-2], self.length + columns)
        self.all_keys = prompt.keys.new_empty(*shape, prompt.keys.shape[-1])
        self.all_values = prompt.values.new_empty(*shape, prompt.values.shape[-1])
        self.all_keys[..., : self.length, :] = prompt.keys
        self.all_values[..., : self.length, :] = prompt.values
        self.lazy_initialization(prompt.keys, prompt.values)
        self._expose()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new columns and return all so far."""
        end = self.length + key_states.shape[-2]
        self.all_keys[..., self.length : end, :] = key_states
        self.all_values[..., self.length : end, :] = value_states
        self.length = end
        return self._expose()

    def keep(self, rows: Tensor) -> None:
        """Keep some rows of the batch."""
        self.all_keys, self.all_values = self.all_keys[rows], self.all_values[rows]
        self._expose()

    def _expose(self) -> tuple[Tensor, Tensor]:
        keys, values = self.all_keys[..., : self.length, :], self.all_values[..., : self.length, :]
        self.keys, self.values = keys, values
        return keys, values
