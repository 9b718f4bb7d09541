"""LoRA on the language model (peft)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass
class LoRA:
    """Low-rank adapters (LoRA, arXiv:2106.09685) on the linear layers of the language model.

    Attributes:
        rank: Inner dimension.
        alpha: Scale of the update; ``alpha / rank`` multiplies it.
    """

    rank: int = 16
    alpha: int = 32

    def inject(self, model: Any) -> Any:
        """The model with adapters in its language layers; no dropout, so that log-probabilities repeat."""
        from peft import LoraConfig, get_peft_model

        names = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=0.0, target_modules=names)
        return get_peft_model(model, config).base_model.model

    @staticmethod
    @contextlib.contextmanager
    def off(model: Any) -> Iterator[None]:
        """Switch the adapters off for a while."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        for layer in layers:
            layer.enable_adapters(enabled=False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(enabled=True)
