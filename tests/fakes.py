"""An engine that writes what it is told to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lit_msrl.engines import Completions, RolloutEngine, Sampling
from lit_msrl.policy import GenerativeRMPolicy, PromptBatch
from lit_msrl.prompts import JudgingPrompt


class ScriptedEngine(RolloutEngine):
    """For each prompt, what ``script`` says: ``(text, mean log-probability)`` of each of its completions."""

    def __init__(self, script: Callable[[JudgingPrompt], Sequence[tuple[str, float]]]) -> None:
        self.script = script
        self.calls: list[tuple[Sampling, int]] = []

    def generate(
        self,
        policy: GenerativeRMPolicy,
        prompts: Sequence[JudgingPrompt],
        batch: PromptBatch,
        *,
        sampling: Sampling,
        seed: int,
    ) -> Completions:
        assert len(batch) == len(prompts)
        self.calls.append((sampling, seed))
        written = [self.script(prompt) for prompt in prompts]
        assert all(len(group) == sampling.group_size for group in written)
        ids, mask = policy.encode_targets([text for group in written for text, _ in group])
        confidence = torch.tensor([number for group in written for _, number in group])
        return Completions(ids, mask, confidence[:, None] * mask)
