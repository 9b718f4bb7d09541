"""What samples: the contract of a rollout engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lit_msrl.policy import GenerativeRMPolicy, PromptBatch
from lit_msrl.prompts import JudgingPrompt


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        group_size: Completions per prompt, ``G`` (paper: 8).
        max_length: Longest completion in tokens (public scripts: 1024).
        temperature: Divides the logits; 0 takes the most probable token.
    """

    group_size: int = 8
    max_length: int = 256
    temperature: float = 1.0


@dataclass(frozen=True)
class Completions:
    """What was drawn.

    Attributes:
        ids: ``(B, T)``, the ``G`` completions of a prompt adjacent, padded on the right.
        mask: ``(B, T)``, True up to and including the end-of-turn token.
        logprobs: ``(B, T)`` under the sampler, 0 where the mask is False.
    """

    ids: Tensor
    mask: Tensor
    logprobs: Tensor


class RolloutEngine(ABC):
    """Draws completions from the policy as it is now."""

    @abstractmethod
    def generate(
        self,
        policy: GenerativeRMPolicy,
        prompts: Sequence[JudgingPrompt],
        batch: PromptBatch,
        *,
        sampling: Sampling,
        seed: int,
    ) -> Completions:
        """Draw ``G`` completions per prompt.

        Args:
            policy: Who writes.
            prompts: The ``P`` requests, for engines that read text and pictures.
            batch: The same requests, encoded, for engines that read tensors.
            sampling: How to draw.
            seed: The draw is a function of weights, prompts and this number.
        """
