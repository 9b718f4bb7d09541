"""What the losses here share: everything but the trust region."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lit_msrl import functional as F
from lit_msrl.losses.base import LossOutput, RLVRLoss
from lit_msrl.rollout import Lesson

KLS = {"k1": F.k1_kl, "k2": F.k2_kl, "k3": F.k3_kl}


@dataclass(eq=False, kw_only=True)
class PolicyGradientLoss(RLVRLoss):
    """``correction * surrogate + kl_coef * KL(policy, reference) - entropy_coef * entropy`` per token.

    A loss overrides ``surrogate`` and, where they differ, ``ratio``, ``advantages`` and the defaults below.
    Where no ``old_logprobs`` are given the rollout came from the policy as it is: the ratio is 1.

    Args:
        scale: Divide advantages by the deviation of the rewards of a ``group``, of the ``batch`` (the step,
            over all ranks), or by nothing (``none``).
        aggregate: What weighs the same in a step: each ``token``, each ``sequence``, or a token in every step
            (``constant``).
        kl_coef: Weight of the KL term; 0 needs no reference policy.
        kl: Estimator of the KL term; ``k1`` has no gradient in expectation.
        kl_target: Adapt ``kl_coef`` after each step so that the KL per token stays near this
            (arXiv:1909.08593, sec. 2.2); the coefficient is part of the checkpoint.
        entropy_coef: Weight of the entropy bonus.
        mask_truncated: Completions that were cut off teach nothing (DAPO's overlong filtering).
        correction: Weigh what another sampler drew; see ``functional.correction_weights``.
        correction_cap: The largest such weight.

    Raises:
        ValueError: ``kl_target`` has no ``kl_coef`` to adapt.
    """

    scale: F.Scale = "none"
    aggregate: F.Aggregation = "token"
    kl_coef: float = 0.0
    kl: F.KL = "k3"
    kl_target: float | None = None
    entropy_coef: float = 0.0
    mask_truncated: bool = False
    correction: F.Correction | None = None
    correction_cap: float = 2.0

    def __post_init__(self) -> None:
        if self.kl_target is not None and not self.needs_reference:
            raise ValueError("kl_target adapts kl_coef, which is 0; set the coefficient to start from")

    @property
    def needs_reference(self) -> bool:
        """Whether there is a KL term."""
        return self.kl_coef != 0

    @property
    def needs_all_groups(self) -> bool:
        """Whether there is a term without an advantage."""
        return self.kl_coef != 0 or self.entropy_coef != 0

    @property
    def corrects_sampler(self) -> bool:
        """Whether there is a correction."""
        return self.correction is not None

    def advantages(self, rewards: Tensor, group_size: int) -> Tensor:
        """Reward less the group's mean, scaled as configured; ``(B,) -> (B,)``."""
        return F.group_advantages(rewards, group_size, scale=self.scale)

    def counted(self, completion_mask: Tensor, truncated: Tensor) -> Tensor:
        """All completion tokens; with ``mask_truncated`` those of whole completions."""
        return completion_mask & ~truncated[:, None] if self.mask_truncated else completion_mask

    def normalizer(self, mask: Tensor, max_length: int) -> Tensor:
        """Tokens, sequences, or sequences times ``max_length``, as ``aggregate`` says."""
        return F.normalizer(mask, self.aggregate, max_length)

    def ratio(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        """Policy over sampling policy, ``(b, T)``; by default token by token."""
        return log_ratio.exp()

    @abstractmethod
    def surrogate(
        self, logprobs: Tensor, ratio: Tensor, advantages: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised for the sake of the advantage.

        Args:
            logprobs: ``(b, T)``, with gradient.
            ratio: ``(b, T)``, with gradient.
            advantages: ``(b, 1)``.

        Returns:
            ``(b, T)`` losses, and by log key ``(b, T)`` of which the token mean is logged.
        """

    def __call__(self, logprobs: Tensor, lesson: Lesson, entropy: Tensor | None = None) -> LossOutput:
        """The loss of a micro-batch; see ``RLVRLoss``."""
        mask = lesson.completion_mask
        old = logprobs.detach() if lesson.old_logprobs is None else lesson.old_logprobs
        ratio = self.ratio((logprobs - old).masked_fill(~mask, 0), mask)
        per_token, watched = self.surrogate(logprobs, ratio, lesson.advantages[:, None])
        watched["rlvr/ratio_mean"] = ratio
        if lesson.sampler_logprobs is not None:
            drift = (old - lesson.sampler_logprobs).masked_fill(~mask, 0).exp()
            watched |= {"sampler/weight": drift, "sampler/weight_square": drift.square()}
            watched["sampler/kl"] = F.k3_kl(lesson.sampler_logprobs, old)
        if self.correction is not None:
            drift = _needed(watched.get("sampler/weight"), "correction", "sampler_logprobs")
            per_token = per_token * F.correction_weights(drift, mask, self.correction, self.correction_cap)
        if self.kl_coef:
            kl = KLS[self.kl](logprobs, _needed(lesson.ref_logprobs, "kl_coef", "ref_logprobs"))
            per_token = per_token + self.kl_coef * kl
            watched["rlvr/kl"] = kl
        if self.entropy_coef:
            per_token = per_token - self.entropy_coef * _needed(entropy, "entropy_coef", "entropy")
        counted = self.counted(mask, lesson.truncated)
        loss = F.aggregate(per_token, counted, self.aggregate, normalizer=lesson.normalizer)
        metrics = {
            key: F.aggregate(value.detach(), mask, "token", normalizer=lesson.step_tokens)
            for key, value in watched.items()
        }
        return LossOutput(loss, metrics)

    # ---- the adaptive coefficient --------------------------------------------------------------------------

    def adapt(self, metrics: Mapping[str, Tensor]) -> None:
        """Raise ``kl_coef`` where the KL is above its target, lower it where it is below; 2 % at most."""
        if self.kl_target is not None and math.isfinite(metrics["rlvr/kl"]):  # else the step was skipped
            excess = float(metrics["rlvr/kl"]) / self.kl_target - 1
            self.kl_coef *= 1 + 0.1 * min(max(excess, -0.2), 0.2)

    def state_dict(self) -> dict[str, Any]:
        """The coefficient, if it adapts."""
        return {} if self.kl_target is None else {"kl_coef": self.kl_coef}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the coefficient of the checkpoint."""
        if self.kl_target is not None:
            self.kl_coef = state_dict.get("kl_coef", self.kl_coef)


def _needed(tensor: Tensor | None, option: str, name: str) -> Tensor:
    if tensor is None:
        raise ValueError(f"{option} is set, so the loss needs {name}")
    return tensor
