"""InternVL of published shapes with random weights, made where they run: no download, no checkpoint."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLVisionConfig,
    Qwen3Config,
)

from lit_msrl.adapters import NF4, LoRA
from lit_msrl.footprint import ModelSize
from lit_msrl.policy import EMBEDDED, GenerativeRMPolicy
from lit_msrl.recompute import recompute
from lit_msrl.sizes import size_of
from lit_msrl.types import Media, PreferenceExample

Size = Literal["tiny", "1b", "8b"]
WORDS = ("the", "a", "red", "blue", "small", "large", "cat", "dog", "house", "runs", "sits", "near", "under")


@dataclass(frozen=True)
class Shape:
    """What of InternVL3.5 differs from size to size.

    Attributes:
        text: Of the language model (Qwen3).
        vision: Of the vision tower.
        tied: The head is the embeddings.
        tile: Pixels of a tile's side.
        tile_tokens: Tokens of a tile.
    """

    text: dict[str, int]
    vision: dict[str, int]
    tied: bool
    tile: int = 448
    tile_tokens: int = 256


def _text(
    width: int, inner: int, layers: int, heads: int, keys: int, head: int, words: int
) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "head_dim": head,
        "vocab_size": words,
    }


def _vision(width: int, inner: int, layers: int, heads: int, patch: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "patch_size": patch,
    }


_VIT = _vision(1024, 4096, 24, 16, 14)  # InternViT-300M, in all of these
SHAPES: dict[Size, Shape] = {
    "tiny": Shape(_text(128, 256, 2, 4, 2, 32, 1200), _vision(32, 64, 1, 4, 8), True, 64, 4),
    "1b": Shape(_text(1024, 3072, 28, 16, 8, 128, 151936), _VIT, True),
    "8b": Shape(_text(4096, 12288, 36, 32, 8, 128, 151936), _VIT, False),
}


def random_policy(
    size: Size,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.bfloat16,
    lora: LoRA | None = None,
    four_bits: bool = False,
    recomputed: bool = False,
) -> tuple[GenerativeRMPolicy, ModelSize]:
    """A policy with random weights, and its size.

    Args:
        size: Which shape.
        device: Where the weights are drawn, and stay.
        dtype: Of the weights.
        lora: Adapters in the language model.
        four_bits: Quantise the decoder layers, one after another; until then all weights are there.
        recomputed: Decoder layers run again in the backward pass.
    """
    shape = SHAPES[size]
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED, padding_side="left")
    side = {"height": shape.tile, "width": shape.tile}
    config = _config(shape, tokenizer)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    counted = size_of(model, lora.rank if lora else 0)
    if four_bits:
        quantize(model)
    processor = GotOcr2ImageProcessorPil(size=side, crop_to_patches=False)
    policy = GenerativeRMPolicy.from_parts(model, tokenizer, processor, lora=lora, max_length=1 << 20)
    policy.quantized = four_bits
    if recomputed:
        recompute(policy.layers())
    return policy, counted


def _config(shape: Shape, tokenizer: Any) -> InternVLConfig:
    image = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    ends: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text: dict[str, Any] = shape.text | ends | {"bos_token_id": None, "tie_word_embeddings": shape.tied}
    per_side = shape.tile // shape.vision["patch_size"]
    return InternVLConfig(
        text_config=Qwen3Config(**text),
        vision_config=InternVLVisionConfig(image_size=shape.tile, **shape.vision),  # type: ignore[arg-type]
        image_token_id=image,
        image_seq_length=shape.tile_tokens,
        downsample_ratio=shape.tile_tokens**0.5 / per_side,
        tie_word_embeddings=shape.tied,
    )


def quantize(model: Any) -> None:
    """Put the weights of the decoder layers into 4 bits (NF4, double quantisation), where they are."""
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    for layer in model.model.language_model.layers:
        for name, linear in list(layer.named_modules()):
            if not isinstance(linear, torch.nn.Linear):
                continue
            weight = linear.weight.data
            small = Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=False,
                compute_dtype=weight.dtype,
                quant_type="nf4",
                device="meta",
            )
            options: Any = {"requires_grad": False, "quant_type": "nf4", "module": small}
            packed: Any = Params4bit(weight, **options)
            small.weight = packed.to(weight.device)
            small.bias = linear.bias
            layer.set_submodule(name, small)
    model.is_loaded_in_4bit = True  # asked by peft
    NF4.keep_trainable(model)


def workload(size: Size, count: int, *, tiles: tuple[int, ...], words: int) -> list[PreferenceExample]:
    """Prompts of noise: of each medium so many tiles, then words.

    Args:
        size: Of the model that is to read them.
        count: How many.
        tiles: Of each medium, one or two.
        words: Of the text.
    """
    side, rng = SHAPES[size].tile, random.Random(0)
    media = tuple(
        Media("video", tuple(Image.effect_noise((side, side), 50 + i).convert("RGB") for i in range(number)))
        for number in tiles
    )
    answers = ("A", "B") if len(media) == 1 else None
    task = "video understanding" if answers else "video generation"
    return [
        PreferenceExample(
            id=str(i),
            task_type=task,
            prompt=" ".join(rng.choices(WORDS, k=words)),
            winner=1 if i % 2 else 2,
            candidates=answers,
            media=media,
        )
        for i in range(count)
    ]
