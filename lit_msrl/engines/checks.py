"""What an engine must pass before a run relies on it: it computes what the policy computes, and it sees.

Seconds long. A sampler with an old head, another template, other pixels or another temperature writes fluent
text all the same; the run would learn from it, badly, without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from lit_msrl.engines.base import Completions, Sampling
from lit_msrl.engines.transfer import on_each
from lit_msrl.policy import GenerativeRMPolicy, PromptBatch
from lit_msrl.prompts import JudgingPrompt
from lit_msrl.strategies import gathered
from lit_msrl.types import Media

LENGTH = 64  # tokens of a completion that is compared: so many that a picture matters to some of them
TOLERANCE = {True: 0.05, False: 1e-3}  # nats a token, in 16 and in 32 bits, as for shared prompts
SEEN = 1e-5  # nats: a token at least changes by so much under grey media; by none if they are not seen
GREY = (127, 127, 127)
Generate = Callable[..., Completions]  # called like ``RolloutEngine.generate``


class StartUpChecks:
    """Compares an engine with the policy at its start and after the first step, on a prompt of the run.

    The prompt is the first that has media, or else the first. Then, once, its media are made grey: the policy
    must find other log-probabilities than it had found with them.

    Args:
        half: The policy or the engine computes in 16 bits.
    """

    def __init__(self, *, half: bool) -> None:
        self.tolerance = TOLERANCE[half]
        self.agreed, self.sees = 0, False

    @torch.no_grad()
    def __call__(
        self,
        generate: Generate,
        policy: GenerativeRMPolicy,
        prompts: Sequence[JudgingPrompt],
        sampling: Sampling,
    ) -> None:
        """Check after weights were sent; on several ranks all call it.

        Raises:
            ValueError: The engine computes something else, or pictures make no difference.
        """
        prompt = next((p for p in prompts if p.media), prompts[0])
        with gathered(policy):  # entered by all ranks each time; what follows talks to no other
            on_each(lambda: self._check(generate, policy, prompt, sampling))

    def _check(
        self, generate: Generate, policy: GenerativeRMPolicy, prompt: JudgingPrompt, sampling: Sampling
    ) -> None:
        if self.agreed < 2 or (prompt.media and not self.sees):
            drawn, found = self.compare(generate, policy, prompt, sampling)
            self.agreed += 1
            if prompt.media and not self.sees:
                self.blank(policy, prompt, drawn, found, _plain(sampling))
                self.sees = True

    def compare(
        self, generate: Generate, policy: GenerativeRMPolicy, prompt: JudgingPrompt, sampling: Sampling
    ) -> tuple[Completions, Tensor]:
        """Completions of a prompt, and the policy's log-probabilities, which must be the engine's."""
        wanted, batch = _plain(sampling), policy.encode([prompt])
        drawn = generate(policy, [prompt], batch, sampling=wanted, seed=0)
        found = _logprobs(policy, batch, drawn, wanted)
        error = float((found - drawn.logprobs).abs().sum() / drawn.mask.sum())
        if not error <= self.tolerance:  # also where it is NaN
            when = "at its start" if self.agreed == 0 else "after weights were sent"
            raise ValueError(
                f"the engine and the policy differ by {error:.2g} nats a token {when} (allowed: "
                f"{self.tolerance:g}), on example {prompt.example.id!r} with {len(prompt.media)} media: the "
                "engine does not compute what is trained; use HFEngine, or report this with your model's name"
            )
        return drawn, found

    @staticmethod
    def blank(
        policy: GenerativeRMPolicy,
        prompt: JudgingPrompt,
        drawn: Completions,
        found: Tensor,
        sampling: Sampling,
    ) -> None:
        """Grey media must change what the policy computes, and the engine must be nearer to the real ones.

        How near is measured along the change, so that the tokens that pictures matter to decide: 0 where the
        engine computes what the policy does with grey media, 1 where it does so with the real ones.
        """
        batch = policy.encode([replace(prompt, media=tuple(grey(medium) for medium in prompt.media))])
        greyed = _logprobs(policy, batch, drawn, sampling)
        change = found - greyed
        effect = float(change.abs().max())
        nearness = float(((drawn.logprobs - greyed) * change).sum() / change.square().sum())
        if not (effect > SEEN and nearness > 0.5):  # also where it is NaN
            raise ValueError(
                f"greying the media of example {prompt.example.id!r} changes log-probabilities by up to "
                f"{effect:.2g} nats, and the engine has made {nearness:.0%} of that change: pictures do not "
                "reach the model; check that its image processor and chat template belong to it"
            )


def grey(medium: Media) -> Media:
    """The same picture or clip with nothing on it."""
    return Media(medium.kind, tuple(Image.new("RGB", frame.size, GREY) for frame in medium.frames))


def _plain(sampling: Sampling) -> Sampling:
    """Two completions from the whole distribution, at the run's temperature unless that is greedy."""
    return Sampling(2, min(LENGTH, sampling.max_length), sampling.temperature or 1.0)


def _logprobs(
    policy: GenerativeRMPolicy, batch: PromptBatch, drawn: Completions, sampling: Sampling
) -> Tensor:
    was_training = policy.training
    policy.eval()
    try:
        found, _ = GenerativeRMPolicy.logprobs(  # not the method FSDP2 wraps, which talks to other ranks
            policy, batch, drawn.ids, drawn.mask, temperature=sampling.temperature
        )
    finally:
        policy.train(was_training)
    return found
