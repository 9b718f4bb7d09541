"""What a run takes of memory and disk, reckoned from the model's configuration; no weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from lit_msrl.adapters import LoRA
from lit_msrl.backbones import Part
from lit_msrl.policy import EMBEDDED, GenerativeRMPolicy


def policy_on_paper(
    model_name: str, *, lora: LoRA | None, dtype: str, max_length: int, trust_remote_code: bool = False
) -> GenerativeRMPolicy:
    """A policy that can read but not judge: its weights are on the meta device and take no memory."""
    source = str(EMBEDDED) if model_name == "tiny" else model_name
    trust = {"trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(source, **trust)
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **trust)
    image_processor = AutoImageProcessor.from_pretrained(source, backend="pil", **trust)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype), **trust)
        return GenerativeRMPolicy.from_parts(
            model, tokenizer, image_processor, lora=lora, max_length=max_length
        )


@dataclass(frozen=True)
class Load:
    """What one step holds at a time, on one rank.

    Attributes:
        prompts: Prompts of a step (both orders counted).
        micro_batch: Prompts of a forward and backward.
        group: Completions per prompt.
        prompt_tokens: Of the longest prompt.
        completion_tokens: Of the longest completion.
        reference: Whether a frozen copy of the policy is kept.
    """

    prompts: int
    micro_batch: int
    group: int
    prompt_tokens: int
    completion_tokens: int
    reference: bool = False


def memory(policy: GenerativeRMPolicy, parts: list[Part], load: Load) -> dict[str, int]:
    """Bytes on one rank, by what takes them; nothing is sharded.

    Weights, gradients, Adam's two moments and keys and values are exact, given the lengths. Activations are
    the usual estimate for a transformer without checkpointing: 34 bytes per token, layer and hidden unit in
    16 bits (arXiv:2205.05198, section 4.1; attention is not materialised), of the language model alone.
    """
    size = policy.head.weight.element_size()
    text = policy.model.config.get_text_config()
    trained = sum(p.numel() for part in parts for _, p in policy.parts()[part]) * size
    weights = sum(parameter.numel() for parameter in policy.parameters()) * size
    tokens = load.prompt_tokens + load.group * load.completion_tokens  # a group shares its prompt
    held = load.prompts * tokens * _keys_and_values(policy) * size if load.group > 1 else 0
    active = load.micro_batch * tokens * text.num_hidden_layers * text.hidden_size * 17 * size
    return {
        "weights": weights,
        "gradients": trained,
        "optimizer": 2 * trained,
        "reference": weights if load.reference else 0,
        "keys and values while sampling": held,
        "activations (estimate)": active,
    }


def _keys_and_values(policy: GenerativeRMPolicy) -> int:
    """Numbers kept of each token: what the key and value projections of the language model give."""
    return sum(
        weight.shape[0]
        for name, weight in policy.named_parameters()
        if "language_model" in name and (".k_proj." in name or ".v_proj." in name)
        if name.endswith("weight") and "lora_" not in name
    )


def checkpoint_bytes(needed: dict[str, int]) -> int:
    """Disk while a checkpoint is written: weights and optimizer, twice, for the old one goes last."""
    return 2 * (needed["weights"] + needed["optimizer"])
