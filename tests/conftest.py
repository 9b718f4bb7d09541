"""Tiny random models of every family, made here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from lit_msrl.backbones.tiny import build_image_processor, build_model, build_tokenizer
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import JudgingPrompt, render
from lit_msrl.types import Media, PreferenceExample

WORDS = [
    "Question: what is red? A: the ball. B: the sky. <think>ball</think>",
    "Caption: a green hat and two dogs. Judge:",
]
QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def picture(seed: int) -> Media:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return Media("image", (Image.fromarray(pixels),))


def text_prompt(name: str = "t", words: str = "what is red?") -> JudgingPrompt:
    """A text preference."""
    example = PreferenceExample(name, "text", words, 1, candidates=("the ball", "the blue sky"))
    return render(example, style="compact", swapped=False)


def picture_prompt(seed: int = 0, words: str = "a red ball") -> JudgingPrompt:
    """Two pictures for a prompt; the second is better."""
    media = (picture(seed), picture(seed + 100))
    example = PreferenceExample(
        f"p{seed}", "image generation", words, 2, media=media, captions=("a ball", "a hat")
    )
    return render(example, style="compact", swapped=False)


def tiny_internvl(seed: int = 0, **options) -> GenerativeRMPolicy:
    """A random InternVL."""
    tokenizer = build_tokenizer(WORDS, vocab_size=320)
    model = build_model(tokenizer, width=32, layers=2, vision_width=32, vision_layers=1, seed=seed)
    return GenerativeRMPolicy.from_parts(model, tokenizer, build_image_processor(), **options).eval()


def tiny_qwen(kind: str, *, width: int = 32, largest: int = 96, **options) -> GenerativeRMPolicy:
    """A random Qwen2.5-VL or Qwen3-VL of two heads, for pictures of up to ``largest`` squared pixels."""
    tokenizer = build_tokenizer(WORDS, vocab_size=320)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(QWEN_TOKENS)}, replace_extra_special_tokens=False
    )
    tokenizer.chat_template = QWEN_CHAT
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    ids: dict[str, Any] = {
        name: tokenizer.convert_tokens_to_ids(token) for name, token in zip(names, QWEN_TOKENS, strict=True)
    }
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": width // 2,
        "rope_scaling": {"rope_type": "default", "mrope_section": [n * width // 32 for n in (2, 3, 3)]},
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_heads": 2,
        "out_hidden_size": width,
    }
    if kind == "qwen2_5_vl":
        vision["fullatt_block_indexes"] = [1]
        model = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
        )
        patch = 14
    else:
        vision["deepstack_visual_indexes"] = [0]
        text["rope_scaling"]["mrope_interleaved"] = True  # transformers always does, vLLM if it is told
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **ids))
        patch = 16
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch, merge_size=2, temporal_patch_size=2, min_pixels=32 * 32, max_pixels=largest**2
    )
    return GenerativeRMPolicy.from_parts(model, tokenizer, processor, **options).eval()


@pytest.fixture(params=["internvl", "qwen2_5_vl", "qwen3_vl"])
def policy(request: pytest.FixtureRequest) -> GenerativeRMPolicy:
    """A random model of each family."""
    return tiny_internvl() if request.param == "internvl" else tiny_qwen(request.param)


@pytest.fixture(autouse=True)
def lightning_says_what_it_said_before() -> Iterator[None]:
    """Scripts that silence Lightning do so for their process, which here is that of the other tests too."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    yield
    logger.setLevel(level)
