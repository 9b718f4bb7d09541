"""Does a configuration fit? Memory per device, from the configuration alone: no weights are read.

python -m lit_msrl.plan --config experiments/configs/stage3.yaml --config my/model.yaml \
    --config experiments/configs/trainer/fsdp.yaml --devices 8 --memory_gib 80

The files are those a stage takes, the stage's own first; later ones win. A run's ``config.yaml`` will do too.
Of a model on the hub only its configuration is fetched.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForImageTextToText

from lit_msrl.adapters import PROJECTIONS
from lit_msrl.backbones import backbone_for
from lit_msrl.cli import run
from lit_msrl.footprint import NF4_BYTES, NF4_DOUBLE_BYTES, Memory, ModelSize, Step, estimate
from lit_msrl.policy import EMBEDDED, GenerativeRMPolicy
from lit_msrl.stages import RLVRModule

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
GIB = 2.0**30


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


def merged(files: Sequence[str | Path]) -> dict[str, Any]:
    """Configuration files as one; later ones win.

    Raises:
        ValueError: A file is missing or holds no settings.
    """
    config: dict[str, Any] = {}
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"{file}: no such configuration")
        content = yaml.safe_load(Path(file).read_text())
        if not isinstance(content, dict):
            raise ValueError(f"{file} holds no settings")
        config = _over(config, content)
    return config


def _over(base: Any, top: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(top, dict):
        return top
    return base | {key: _over(base.get(key), value) for key, value in top.items()}


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
    policy = _defaults(GenerativeRMPolicy) | config["model"]["policy"].get("init_args", {})
    stage = _defaults(RLVRModule) | config["model"]
    size = model_size(
        policy["model_name"],
        (policy["lora"] or {}).get("rank", 16) if policy["lora"] is not None else 0,
        trust_remote_code=policy["trust_remote_code"],
    )
    is_rl = "loss" in config["model"]
    group = stage["group_size"] if is_rl else 1
    batch = config["data"]["batch_size"] * (2 if is_rl and stage["both_orders"] else 1)
    prompt = lengths.prompt_tokens or policy["max_length"]
    pictures = prompt // 2 if lengths.picture_tokens is None else lengths.picture_tokens
    micro = stage["micro_batch_size"]  # `auto` takes what is left, but at least one
    loss = config["model"].get("loss", {}).get("init_args", {})
    return size, replace(
        _devices(config["trainer"], policy, lengths),
        prompts=batch,
        micro_batch=min(batch, 1 if micro == "auto" else micro) if is_rl else batch,
        group=group,
        prompt_tokens=prompt,
        picture_tokens=pictures if stage["view"] == "visual" else 0,
        completion_tokens=stage["max_completion"],
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
        devices=lengths.devices or _count(trainer),
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


def _count(trainer: Mapping[str, Any]) -> int:
    devices = trainer.get("devices", "auto")
    if isinstance(devices, list):
        devices = len(devices)
    if devices in ("auto", -1):
        devices = torch.cuda.device_count()
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


def _defaults(kind: type) -> dict[str, Any]:
    return {name: p.default for name, p in signature(kind).parameters.items() if p.default is not p.empty}


def show(size: ModelSize, step: Step, memory: Memory, available: float) -> None:
    """Print the plan."""
    table = Table("when", "what", "GiB", title=f"one of {step.devices} device(s)")
    for phase, items in ({"always": memory.always} | memory.phases).items():
        for name, held in items.items():
            if held:
                table.add_row(phase, name, f"{held / GIB:.2f}")
                phase = ""
    console = Console()
    console.print(table)
    weights = sum(
        (size.layer_parameters, size.other_parameters, size.projector_parameters, size.vision_parameters)
    )
    console.print(
        f"{weights / 1e9:.2f} B weights; per device and step {step.prompts} prompts of {step.prompt_tokens} "
        f"tokens ({step.picture_tokens} of pictures), {step.group} completions of {step.completion_tokens}, "
        f"{step.micro_batch} prompts per micro-batch."
    )
    verdict = "fits" if memory.peak <= 0.9 * available else "does not fit"
    console.print(
        f"Peak {memory.peak / GIB:.1f} GiB of {available / GIB:.1f} GiB: {verdict} "
        "(a tenth is left for what is not counted: the allocator, CUDA, libraries)."
    )


def main(args: Sequence[str] | None = None) -> Memory:
    """Read a configuration and print its plan."""
    parser = argparse.ArgumentParser(
        prog="python -m lit_msrl.plan", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", action="append", required=True, help="a file; may be repeated")
    parser.add_argument("--devices", type=int, help="all GPUs of all nodes (default: as the trainer says)")
    parser.add_argument("--memory_gib", type=float, help="of one device (default: of the one here)")
    parser.add_argument("--prompt_tokens", type=int, help="of the longest prompt (default: max_length)")
    parser.add_argument("--picture_tokens", type=int, help="how many of them are pictures' (default: half)")
    options = parser.parse_args(args)
    lengths = Lengths(options.prompt_tokens, options.picture_tokens, options.devices)
    size, step = read(merged(options.config), lengths)
    memory = estimate(size, step)
    here = (
        torch.cuda.get_device_properties(0).total_memory
        if torch.cuda.is_available()
        else psutil.virtual_memory().total
    )
    show(size, step, memory, options.memory_gib * GIB if options.memory_gib else here)
    return memory


if __name__ == "__main__":
    run(main)
