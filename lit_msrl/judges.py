"""Who judges in an evaluation: a policy of ours, or any model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import math
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lit_msrl.endpoint import Endpoint, message
from lit_msrl.engines import RolloutEngine, Sampling
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import JudgingPrompt

_VERDICT = re.compile(r"[AB]\s*</answer>")
_TAIL = 24  # tokens at the end of a judgement among which the verdict is looked for


class Answer(NamedTuple):
    """A judgement as it was written.

    Attributes:
        prompt: The index of its prompt.
        sample: Its number among the samples of the prompt.
        text: What was written.
        confidence: The probability of the verdict's token, where it is known.
        tokens: What was written, in tokens, where that is known.
    """

    prompt: int
    sample: int
    text: str
    confidence: float | None
    tokens: int | None


class Judge(ABC):
    """Writes judgements."""

    @abstractmethod
    def answers(self, prompts: Sequence[JudgingPrompt], samples: range) -> Iterator[Answer]:
        """Judge each prompt once per sample; answers come in any order, each when it is there."""


class PolicyJudge(Judge):
    """A policy in this process.

    Args:
        policy: The model.
        engine: What samples.
        max_completion: Longest judgement in tokens.
        temperature: Of sampling; 0 is greedy.
        seed: Seed of sampling. A draw is a function of it, the prompts and the samples asked for together.
    """

    def __init__(
        self,
        policy: GenerativeRMPolicy,
        engine: RolloutEngine,
        *,
        max_completion: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.policy, self.engine, self.seed = policy, engine, seed
        self.max_completion, self.temperature = max_completion, temperature

    @torch.no_grad()
    def answers(self, prompts: Sequence[JudgingPrompt], samples: range) -> Iterator[Answer]:
        """See ``Judge``."""
        sampling = Sampling(len(samples), self.max_completion, self.temperature)
        drawn = self.engine.generate(
            self.policy,
            prompts,
            self.policy.encode(prompts),
            sampling=sampling,
            seed=self._seed(prompts, samples),
        )
        texts = self.policy.decode(drawn.ids, drawn.mask)
        for row, text in enumerate(texts):
            prompt, sample = divmod(row, len(samples))
            ids, logprobs = drawn.ids[row][drawn.mask[row]], drawn.logprobs[row][drawn.mask[row]]
            confidence = _verdict_probability(partial(self._tail, ids), logprobs.tolist())
            yield Answer(prompt, samples[sample], text, confidence, len(ids))

    def _seed(self, prompts: Sequence[JudgingPrompt], samples: range) -> int:
        if self.temperature == 0:
            return 0
        asked = "\n".join([f"{self.seed} {samples}", *(f"{p.example.id} {p.swapped}" for p in prompts)])
        return zlib.crc32(asked.encode())

    def _tail(self, ids: Tensor, start: int) -> str:
        return self.policy.tokenizer.decode(ids[start:])


class EndpointJudge(Judge):
    """A model behind an endpoint.

    Args:
        endpoint: Where it is.
        max_completion: Longest judgement in tokens.
        temperature: Of sampling; ``None`` leaves it to the server.
    """

    def __init__(self, endpoint: Endpoint, *, max_completion: int, temperature: float | None = 0.0) -> None:
        self.endpoint, self.max_completion, self.temperature = endpoint, max_completion, temperature

    def answers(self, prompts: Sequence[JudgingPrompt], samples: range) -> Iterator[Answer]:
        """See ``Judge``."""
        asked = [(i, sample) for i in range(len(prompts)) for sample in samples]
        messages = [message(prompt.text, prompt.media) for prompt in prompts]
        replies = self.endpoint.complete(
            [messages[i] for i, _ in asked], max_tokens=self.max_completion, temperature=self.temperature
        )
        for index, reply in replies:
            prompt, sample = asked[index]
            pieces = [piece for piece, _ in reply.scored]
            confidence = _verdict_probability(partial(_joined, pieces), [score for _, score in reply.scored])
            yield Answer(prompt, sample, reply.text, confidence, reply.tokens)


def _joined(pieces: Sequence[str], start: int) -> str:
    return "".join(pieces[start:])


def _verdict_probability(tail: Callable[[int], str], logprobs: Sequence[float]) -> float | None:
    """The probability of the token that holds the verdict's letter; ``None`` without one.

    Args:
        tail: The text from a token on.
        logprobs: Of all tokens.
    """
    for start in range(len(logprobs) - 1, max(-1, len(logprobs) - _TAIL), -1):
        if _VERDICT.search(tail(start)):
            return min(1.0, math.exp(logprobs[start]))
    return None
