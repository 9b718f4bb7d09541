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
        top_p: Draw among the most probable tokens that together have at least this probability; 1 for all.
        top_k: Draw among so many most probable tokens; 0 for all.

    Raises:
        ValueError: A number is out of its range.
    """

    group_size: int = 8
    max_length: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1 or self.top_k < 0 or self.temperature < 0:
            raise ValueError(
                f"cannot sample with temperature {self.temperature}, top_p {self.top_p}, top_k {self.top_k}; "
                "use temperature >= 0, 0 < top_p <= 1, top_k >= 0"
            )

    @property
    def truncated(self) -> bool:
        """Whether some tokens are out of reach."""
        return self.top_p < 1 or self.top_k > 0


@dataclass(frozen=True)
class Completions:
    """What was drawn.

    Attributes:
        ids: ``(B, T)``, the ``G`` completions of a prompt adjacent, padded on the right.
        mask: ``(B, T)``, True up to and including the end-of-turn token.
        logprobs: ``(B, T)`` under the distribution that was drawn from (of what temperature, top-p and top-k
            leave, with sum 1), 0 where the mask is False.
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
