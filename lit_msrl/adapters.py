"""A large model on a small card: LoRA adapters (peft) beside frozen weights in 4 bits (bitsandbytes)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PROJECTIONS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@dataclass
class LoRA:
    """Low-rank adapters (LoRA, arXiv:2106.09685) on the linear layers of the language model.

    Attributes:
        rank: Inner dimension.
        alpha: Scale of the update; ``alpha / rank`` multiplies it.
    """

    rank: int = 16
    alpha: int = 32

    def config(self) -> Any:
        """The same in peft's words."""
        from peft import LoraConfig

        return LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=0.0, target_modules=PROJECTIONS)

    def inject(self, model: Any) -> Any:
        """The model with adapters in its language layers; no dropout, so that log-probabilities repeat."""
        from peft import get_peft_model

        return get_peft_model(model, self.config()).base_model.model

    @staticmethod
    @contextlib.contextmanager
    def off(model: Any) -> Iterator[None]:
        """Switch the adapters off for a while."""
        layers = list(_adapted_layers(model).values())
        for layer in layers:
            layer.enable_adapters(enabled=False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(enabled=True)

    @staticmethod
    def merge(model: nn.Module) -> None:
        """Add the adapters to the weights and take them out of the model."""
        for name, layer in _adapted_layers(model).items():
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())

    def save(self, weights: Mapping[str, Tensor], folder: str, base: str) -> None:
        """Write the adapters alone, as peft, transformers and vLLM read them.

        Args:
            weights: The adapters, as peft names them (``engines.weights.adapter_weights``).
            folder: Gets ``adapter_config.json`` and ``adapter_model.safetensors``.
            base: Hub id or folder of the model they belong to.
        """
        from safetensors.torch import save_file

        config = self.config()
        config.base_model_name_or_path, config.inference_mode = base, True
        config.save_pretrained(folder)
        tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
        save_file(tensors, f"{folder}/adapter_model.safetensors", metadata={"format": "pt"})


@dataclass
class NF4:
    """Frozen weights in 4 bits, with LoRA adapters beside them (QLoRA, arXiv:2305.14314).

    Attributes:
        double_quant: Quantise the quantisation constants too; saves another 0.4 bits per weight.
        vision: Quantise the vision tower and the projector too. Then they cannot be trained.
    """

    double_quant: bool = True
    vision: bool = False

    def config(self, dtype: torch.dtype, parts: list[str]) -> Any:
        """The same in the words of transformers.

        Args:
            dtype: What the layers compute in.
            parts: Module names of vision tower and projector in the plain model, with the leading ``model.``:
                without it they are quantised all the same, and nothing is said.
        """
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=self.double_quant,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=["lm_head", *([] if self.vision else parts)],
        )

    @staticmethod
    def keep_trainable(model: nn.Module) -> None:
        """Forbid what stops gradients on a CPU.

        On CPUs with bfloat16 instructions bitsandbytes repacks a weight for inference when its layer first
        samples (eval mode, no gradients). From then on no gradient passes, and nothing is said.
        """
        from bitsandbytes.nn.modules import Linear4bit

        for module in model.modules():
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False


def is_adapter(parameter: str) -> bool:
    """Whether a parameter is part of an adapter, by its name."""
    return "lora_" in parameter


def _adapted_layers(model: nn.Module) -> dict[str, Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
