"""Engines with weights of their own: started when first asked, sent what has changed, checked."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from lit_msrl.engines.base import Completions, RolloutEngine, Sampling
from lit_msrl.engines.checks import StartUpChecks
from lit_msrl.engines.transfer import on_each
from lit_msrl.engines.weights import (
    Named,
    adapter_weights,
    fingerprint,
    model_weights,
    sends_adapters_alone,
)
from lit_msrl.policy import GenerativeRMPolicy, PromptBatch
from lit_msrl.prompts import JudgingPrompt


class SyncedEngine(RolloutEngine):
    """Before it draws it sees to it that the sampler has the policy's weights as they are now.

    Whether they changed is seen from their sums (``weights.fingerprint``), so it does not matter who changed
    them: an optimizer, a checkpoint, another stage. On several ranks all call ``generate`` equally often.

    Args:
        check: Compare with the policy at the start and after the first step (``StartUpChecks``).
    """

    def __init__(self, *, check: bool = True) -> None:
        self.check = check
        self.checks: StartUpChecks | None = None
        self.served: weakref.ref[GenerativeRMPolicy] | None = None  # a sampler may outlive a run
        self.sent: dict[str, float] | None = None

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
        with isolate_rng():  # a resumed run starts its engine again, and must go on as if it had not
            if self.synchronise(policy) and self.checks is not None:
                self.checks(self.draw, policy, prompts, sampling)
            completions = on_each(lambda: self.draw(policy, prompts, batch, sampling=sampling, seed=seed))
            self.rest()
            return completions

    def synchronise(self, policy: GenerativeRMPolicy) -> bool:
        """Send what has changed since the last time, everything the first time; returns whether it did."""
        if not self.serves(policy):
            self.start(policy)
            self.checks = StartUpChecks(half=self.half or policy.half) if self.check else None
            self.served, self.sent = weakref.ref(policy), None
        now = fingerprint(policy)
        if now == self.sent:
            return False
        if self.sent is None or not sends_adapters_alone(policy):
            self.send_model(policy, model_weights(policy))
        if policy.adapted:
            self.send_adapters(policy, adapter_weights(policy))
        self.sent = now
        return True

    def serves(self, policy: GenerativeRMPolicy) -> bool:
        """Whether the sampler has some weights of this policy."""
        return self.served is not None and self.served() is policy

    def rest(self) -> None:  # noqa: B027 - most have nothing to do
        """Give back what is not needed while the policy learns."""

    @property
    @abstractmethod
    def half(self) -> bool:
        """Whether the sampler computes in 16 bits."""

    @abstractmethod
    def start(self, policy: GenerativeRMPolicy) -> None:
        """Make ready to be sent this policy's weights, whatever was served before."""

    @abstractmethod
    def send_model(self, policy: GenerativeRMPolicy, weights: Iterator[Named]) -> None:
        """Replace all weights but adapters, forget what was computed with the old ones, compare checksums."""

    @abstractmethod
    def send_adapters(self, policy: GenerativeRMPolicy, weights: Iterator[Named]) -> None:
        """Replace the adapters, forget what was computed with the old ones, compare checksums."""

    @abstractmethod
    def draw(
        self,
        policy: GenerativeRMPolicy,
        prompts: Sequence[JudgingPrompt],
        batch: PromptBatch,
        *,
        sampling: Sampling,
        seed: int,
    ) -> Completions:
        """``generate`` with the weights as they were sent."""
