"""Models and prompts for vLLM on a CPU, and what is done with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from lit_msrl.backbones.tiny import build_image_processor, build_model, build_tokenizer
from lit_msrl.engines import Completions, RolloutEngine, Sampling
from lit_msrl.engines.vllm_sampler import Sampler
from lit_msrl.engines.vllm_sums import Sum
from lit_msrl.engines.weights import Named
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import JudgingPrompt
from lit_msrl.types import Media
from tests.conftest import WORDS, picture, picture_prompt, text_prompt

LONG = "a red ball and a green hat and two dogs and the blue sky " * 8


def model(seed: int = 0, *, key_heads: int = 2, **options) -> GenerativeRMPolicy:
    """A random InternVL with heads as narrow as vLLM's attention on a CPU takes them."""
    tokenizer = build_tokenizer(WORDS, vocab_size=320)
    whole = build_model(tokenizer, width=64, layers=2, heads=2, vision_width=32, vision_layers=1, seed=seed)
    whole.config.get_text_config().num_key_value_heads = key_heads
    made = type(whole)(whole.config)
    shapes = {name: tensor.shape for name, tensor in made.state_dict().items()}
    made.load_state_dict({name: t[: shapes[name][0]] for name, t in whole.state_dict().items()})
    return GenerativeRMPolicy.from_parts(made, tokenizer, build_image_processor(), max_length=1024, **options)


def clips() -> JudgingPrompt:
    """Two clips of three odd-sized frames."""
    frames = [picture(seed).frames[0].resize((150, 97)) for seed in range(6)]
    media = Media("video", tuple(frames[:3])), Media("video", tuple(frames[3:]))
    prompt = picture_prompt(3)
    return replace(prompt, media=media)


PROMPTS = [text_prompt("short"), picture_prompt(1), picture_prompt(2, LONG), clips()]


def garbled(reload: Callable[[Sampler, Iterator[Named]], dict[str, Sum]]) -> Callable[..., dict[str, Sum]]:
    """A way to send weights on which one of them changes."""

    def garble(sampler: Sampler, weights: Iterator[Named]) -> dict[str, Sum]:
        sent = list(weights)
        reload(sampler, iter([(n, t + 1e-5 * ("layers.1.mlp.up" in n)) for n, t in sent]))
        return {name: Sum.of([tensor]) for name, tensor in sent}

    return garble


def step(policy: GenerativeRMPolicy, size: float = 0.05) -> None:
    """As after an optimizer step."""
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn_like(parameter)


def draw(
    engine: RolloutEngine,
    policy: GenerativeRMPolicy,
    prompts: Sequence[JudgingPrompt] = PROMPTS,
    *,
    seed: int = 0,
    **options,
) -> Completions:
    sampling = Sampling(**({"group_size": 3, "max_length": 12} | options))
    return engine.generate(policy, prompts, policy.encode(prompts), sampling=sampling, seed=seed)


def error(
    policy: GenerativeRMPolicy,
    drawn: Completions,
    prompts: Sequence[JudgingPrompt] = PROMPTS,
    *,
    temperature: float = 1.0,
) -> float:
    """Largest difference from the policy's log-probabilities."""
    learned, _ = policy.logprobs(policy.encode(prompts), drawn.ids, drawn.mask, temperature=temperature)
    return float((drawn.logprobs - learned.detach()).abs().max())
