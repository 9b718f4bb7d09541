"""What vLLM is asked and what it answers, in process and over HTTP alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lit_msrl.engines.base import Completions, Sampling
from lit_msrl.policy import SUPPRESSED, GenerativeRMPolicy, pad_right
from lit_msrl.prompts import JudgingPrompt


def allowed_rank(rank: int) -> int:
    """The smallest rank that vLLM has kernels for and that holds this one.

    Example:
        >>> allowed_rank(4), allowed_rank(24)
        (8, 32)
    """
    return next(r for r in (8, 16, 32, 64, 128, 256, 320, 512) if r >= rank)


def prompt_ids(policy: GenerativeRMPolicy, prompt: JudgingPrompt) -> list[int]:
    """A prompt's tokens, with one placeholder for each picture."""
    return policy.tokenizer(policy.chat(prompt.text, prompt.media), add_special_tokens=False)["input_ids"]


def sampling_parameters(
    policy: GenerativeRMPolicy, sampling: Sampling, *, seed: int, number: int
) -> dict[str, Any]:
    """Of a group of completions, by vLLM's names.

    Args:
        policy: Its suppressed tokens are not drawn, and its end of turn ends a completion.
        sampling: What is drawn.
        seed: Of the draw.
        number: Of the prompt, so that equal prompts get other completions.
    """
    return {
        "n": sampling.group_size,
        "seed": hash((seed, number)) % 2**62,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": sampling.max_length,
        "logit_bias": dict.fromkeys(policy.suppressed.tolist(), SUPPRESSED),
        "stop_token_ids": [policy.tokenizer.eos_token_id],
        "ignore_eos": True,  # of what the configuration may call so
        "logprobs": 0,  # of the token drawn alone
        "detokenize": False,
    }


def completions(
    policy: GenerativeRMPolicy, ids: Sequence[Sequence[int]], logprobs: Sequence[float]
) -> Completions:
    """Completions as they were written.

    Args:
        policy: Whose device and padding are used.
        ids: Of each completion its tokens.
        logprobs: Of all tokens, one completion after another.
    """
    padded, mask = pad_right(ids, policy.tokenizer.pad_token_id, policy.device)
    scores = torch.zeros(padded.shape, dtype=torch.float32, device=policy.device)
    scores[mask] = torch.tensor(logprobs, dtype=torch.float32, device=policy.device)
    return Completions(padded, mask, scores)
