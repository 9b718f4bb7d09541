"""Models and prompts for vLLM on a CPU, and what is done with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lit_msrl.backbones.tiny import build_image_processor, build_model, build_tokenizer
from lit_msrl.engines import Completions, HFEngine, Sampling, VLLMEngine
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import JudgingPrompt
from lit_msrl.types import Media
from tests.conftest import WORDS, picture, picture_prompt, text_prompt

LONG = "a red ball and a green hat and two dogs and the blue sky " * 8


def model(seed: int = 0, **options) -> GenerativeRMPolicy:
    """A random InternVL with heads as narrow as vLLM's attention on a CPU takes them."""
    tokenizer = build_tokenizer(WORDS, vocab_size=320)
    made = build_model(tokenizer, width=64, layers=2, heads=2, vision_width=32, vision_layers=1, seed=seed)
    return GenerativeRMPolicy.from_parts(made, tokenizer, build_image_processor(), max_length=1024, **options)


def clips() -> JudgingPrompt:
    """Two clips of three odd-sized frames."""
    frames = [picture(seed).frames[0].resize((150, 97)) for seed in range(6)]
    media = Media("video", tuple(frames[:3])), Media("video", tuple(frames[3:]))
    prompt = picture_prompt(3)
    return replace(prompt, media=media)


PROMPTS = [text_prompt("short"), picture_prompt(1), picture_prompt(2, LONG), clips()]


def step(policy: GenerativeRMPolicy, size: float = 0.05) -> None:
    """As after an optimizer step."""
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn_like(parameter)


def draw(
    engine: VLLMEngine | HFEngine,
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
