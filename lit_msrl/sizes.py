"""What of a model and a configuration decides how much memory a step takes, in the words of ``footprint``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from lit_msrl.adapters import PROJECTIONS, LoRA
from lit_msrl.backbones import backbone_for
from lit_msrl.footprint import NF4_BYTES, NF4_DOUBLE_BYTES, ModelSize, Step
from lit_msrl.policy import EMBEDDED, GenerativeRMPolicy
from lit_msrl.stages import RLVRModule

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}


@dataclass(frozen=True)
class Lengths:
    """What a configuration does not say.

    Attributes:
        prompt_tokens: Of the longest prompt; ``model.policy.max_length`` if not given.
        picture_tokens: How many of those stand for pictures; half of them if not given.
        devices: All GPUs of all nodes; from ``trainer`` if not given.
    """

    prompt_tokens: int | None = None
    picture_tokens: int | None = None
    devices: int | None = None


def model_size(source: str, rank: int = 0, *, trust_remote_code: bool = False) -> ModelSize:
    """The size of a model, from its configuration (a hub id, a folder, or ``tiny``).

    Args:
        source: As ``model.policy.model_name``.
        rank: Of LoRA, 0 without.
        trust_remote_code: Run model code from the hub.
    """
    source = str(EMBEDDED) if source == "tiny" else source
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    return size_of(model, rank)


def size_of(model: Any, rank: int = 0) -> ModelSize:
    """The size of a plain Hugging Face model that is there (its weights need not be), and of LoRA for it."""
    family = backbone_for(model.config, None)
    counts = {"layers": 0, "language": 0, "projector": 0, "vision": 0}
    for name, parameter in model.named_parameters():
        part = "layers" if "language_model.layers." in name else family.part(name)
        counts[part] += parameter.numel()
    layers = family.layers(model)
    first: Any = layers[0]
    adapted = [m for n, m in model.named_modules() if re.fullmatch(PROJECTIONS, n)]
    return ModelSize(
        layers=len(layers),
        layer_parameters=counts["layers"],
        other_parameters=counts["language"],
        projector_parameters=counts["projector"],
        vision_parameters=counts["vision"],
        adapter_parameters=sum(rank * (m.in_features + m.out_features) for m in adapted),
        width=first.mlp.gate_proj.in_features,
        queries=first.self_attn.q_proj.out_features,
        keys=first.self_attn.k_proj.out_features,
        has_query_norm="q_norm" in dict(first.self_attn.named_children()),
        inner=first.mlp.gate_proj.out_features,
        vocabulary=model.get_output_embeddings().out_features,
        vision_layers=len(family.vision_layers(model)),
        vision_width=model.config.vision_config.hidden_size,
        vision_inner=model.config.vision_config.intermediate_size,
        patches_per_token=family.patches_per_token,
    )


def read(config: Mapping[str, Any], lengths: Lengths) -> tuple[ModelSize, Step]:
    """Model and step of a configuration."""
    policy = _policy(config)
    trust = policy["trust_remote_code"]
    size = model_size(policy["model_name"], adapter_rank(config), trust_remote_code=trust)
    return size, read_step(config, lengths)


def adapter_rank(config: Mapping[str, Any]) -> int:
    """The rank of a configuration's LoRA, 0 without."""
    lora = _policy(config)["lora"]
    return 0 if lora is None else lora.get("rank", LoRA().rank)


def read_step(config: Mapping[str, Any], lengths: Lengths) -> Step:
    """The step of a configuration: of ``model``, ``data`` and ``trainer``."""
    policy, stage = _policy(config), _defaults(RLVRModule) | config["model"]
    is_rl, scores = "loss" in config["model"], "head_learning_rate" in config["model"]
    group = stage["group_size"] if is_rl else 1
    twice = scores or (is_rl and stage["both_orders"])  # a scalar is of one candidate
    batch = config["data"]["batch_size"] * (2 if twice else 1)
    prompt = lengths.prompt_tokens or policy["max_length"]
    pictures = prompt // 2 if lengths.picture_tokens is None else lengths.picture_tokens
    micro = stage["micro_batch_size"]  # `auto` takes what is left, but at least one
    loss = config["model"].get("loss", {}).get("init_args", {})
    return replace(
        _devices(config["trainer"], policy, lengths),
        prompts=batch,
        micro_batch=min(batch, 1 if micro == "auto" else micro) if is_rl else batch,
        group=group,
        prompt_tokens=prompt,
        picture_tokens=pictures if stage["view"] == "visual" else 0,
        completion_tokens=0 if scores else stage["max_completion"],
        trained=frozenset(config["model"]["learning_rates"]),
        optimizer_bytes=_optimizer_bytes(config["model"]["optimizer"]["class_path"], policy),
        is_recomputed=policy["gradient_checkpointing"],
        samples=is_rl,
        has_reference=is_rl and loss.get("kl_coef", 0.0) > 0 and policy["lora"] is None,
    )


def _devices(trainer: Mapping[str, Any], policy: Mapping[str, Any], lengths: Lengths) -> Step:
    """The part of a step that follows from trainer, strategy and quantisation."""
    strategy = trainer.get("strategy", "auto")
    is_sharded = isinstance(strategy, dict) and strategy["class_path"].endswith("FSDP2")
    options = strategy.get("init_args", {}) if is_sharded else {}
    dtype = BYTES[policy["dtype"]]
    mixed = str(trainer.get("precision", "32-true")).startswith(("bf16", "16")) or options.get("compute")
    step = Step(
        prompts=1,
        micro_batch=1,
        group=1,
        prompt_tokens=1,
        picture_tokens=0,
        completion_tokens=1,
        weight_bytes=dtype,
        compute_bytes=2.0 if mixed else dtype,
        devices=lengths.devices or device_count(trainer),
        is_sharded=is_sharded,
        is_offloaded=bool(options.get("cpu_offload")),
        is_accelerator=trainer.get("accelerator", "auto") != "cpu",
    )
    if policy["quantization"] is None:
        return step
    four = NF4_DOUBLE_BYTES if policy["quantization"].get("double_quant", True) else NF4_BYTES
    return replace(
        step, layer_bytes=four, vision_bytes=four if policy["quantization"].get("vision") else None
    )


def device_count(trainer: Mapping[str, Any]) -> int:
    """All devices of all nodes that a trainer uses.

    Raises:
        ValueError: It takes all GPUs there are, and there is none here.
    """
    devices = trainer.get("devices", "auto")
    if isinstance(devices, list):
        devices = len(devices)
    if devices in ("auto", -1):
        devices = 1 if trainer.get("accelerator") == "cpu" else torch.cuda.device_count()
        if not devices:
            raise ValueError("trainer.devices is 'auto' and there is no GPU here; say --devices")
    return int(devices) * int(trainer.get("num_nodes", 1))


def _optimizer_bytes(class_path: str, policy: Mapping[str, Any]) -> float:
    """Bytes of Adam's two moments per trained weight; an optimizer without moments has none."""
    if not re.search("adam", class_path, re.IGNORECASE):
        return 0.0
    if class_path.endswith("8bit"):
        return 2.0
    return 2 * (4.0 if policy["lora"] is not None else BYTES[policy["dtype"]])


def _policy(config: Mapping[str, Any]) -> dict[str, Any]:
    return _defaults(GenerativeRMPolicy) | config["model"]["policy"].get("init_args", {})


def _defaults(kind: type) -> dict[str, Any]:
    return {name: p.default for name, p in signature(kind).parameters.items() if p.default is not p.empty}
