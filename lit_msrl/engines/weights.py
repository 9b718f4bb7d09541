"""What a sampler with weights of its own is sent: all of the model, or its adapters alone.

Names are those of the plain Hugging Face model, and for adapters those of peft; vLLM knows both. On several
ranks every function here is a collective: all ranks call it, and go through all of what it yields.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_msrl.adapters import is_adapter
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.strategies import whole

Named = tuple[str, Tensor]


def sends_adapters_alone(policy: GenerativeRMPolicy) -> bool:
    """Whether the adapters are all that differs, or may come to, from the base model."""
    return policy.adapted and all(is_adapter(name) for name in policy.departed)


def model_weights(policy: GenerativeRMPolicy) -> Iterator[Named]:
    """The model without adapters, a whole tensor at a time.

    A tied head comes under its own name too: a sampler may hold a copy of it in another layout, which the
    embeddings alone would leave as it was. Weights in 4 bits come as the numbers they stand for; adapters are
    never added to them.

    Args:
        policy: The model, sharded or not.

    Yields:
        Names and tensors on the policy's device; with CPU offload on the host.
    """
    for name, parameter in policy.model.named_parameters(remove_duplicate=False):
        if not is_adapter(name):
            tensor = _numbers(parameter) if policy.quantized else parameter.detach()
            yield name.replace(".base_layer.", "."), whole(tensor)


def adapter_weights(policy: GenerativeRMPolicy) -> Iterator[Named]:
    """The LoRA adapters, as peft names them."""
    for name, parameter in policy.model.named_parameters():
        if is_adapter(name):
            yield f"base_model.model.{name.replace('.default.', '.')}", whole(parameter.detach())


def fingerprint(policy: GenerativeRMPolicy) -> dict[str, float]:
    """The sum of each tensor that may have changed since the policy was made; shards are not gathered.

    In double precision: cheap, and changed by any step.
    """
    may_change = [(name, p.detach()) for name, p in policy.named_parameters() if name in policy.departed]
    return {name: float(whole(tensor.sum(dtype=torch.float64))) for name, tensor in may_change}


def write_model_folder(policy: GenerativeRMPolicy, folder: Path) -> None:
    """Everything but the weights, as ``AutoModelForImageTextToText`` and vLLM read it."""
    config = deepcopy(policy.model.config)
    config.architectures = [type(policy.model).__name__]
    if policy.quantized:
        del config.quantization_config  # the weights that are sent are not in 4 bits
    config.save_pretrained(folder)
    policy.model.generation_config.save_pretrained(folder)
    policy.backbone.write_processor(policy.tokenizer, folder)


def _numbers(parameter: Any) -> Tensor:
    """What a weight in 4 bits stands for; any other weight is itself."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Params4bit

    if isinstance(parameter, Params4bit):
        return dequantize_4bit(parameter.data, parameter.quant_state)
    return parameter.detach()
