"""What vLLM 0.32 must do otherwise to compute what is trained; it loads this into each of its processes.

The entry point ``vllm.general_plugins`` in ``pyproject.toml`` names it, so that ``vllm serve`` has it too.
"""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Make both changes; making them again changes nothing."""
    _output_bias()
    _resize_with_pil()


def _output_bias() -> None:
    """Give Qwen3 attention the output bias that ``attention_bias`` means in transformers.

    The embedded tiny model has it. vLLM builds the layer without, and passes over its weights in silence.
    """
    from vllm.model_executor.layers.linear import RowParallelLinear  # pyright: ignore[reportMissingImports]
    from vllm.model_executor.models import qwen3  # pyright: ignore[reportMissingImports]

    class Attention(qwen3.Qwen3Attention):
        def __init__(
            self, hidden_size: int, *args: Any, qkv_bias: bool = False, prefix: str = "", **options: Any
        ) -> None:
            super().__init__(hidden_size, *args, qkv_bias=qkv_bias, prefix=prefix, **options)
            if qkv_bias:
                self.o_proj = RowParallelLinear(
                    self.total_num_heads * self.head_dim,
                    hidden_size,
                    bias=True,
                    quant_config=options["quant_config"],
                    prefix=f"{prefix}.o_proj",
                )

    if qwen3.Qwen3Attention.__module__ == qwen3.__name__:
        qwen3.Qwen3Attention = Attention


def _resize_with_pil() -> None:
    """Prepare pictures with PIL, as the policy does: torchvision's resizing is off by up to 0.03.

    A processor that vLLM makes takes torchvision where it is installed, and vLLM installs it.
    """
    from transformers.models.auto import image_processing_auto

    with_pil = image_processing_auto.DEFAULT_TO_PIL_BACKEND_IMAGE_PROCESSORS
    with_pil += [name for name in ("GotOcr2ImageProcessor", "Qwen2VLImageProcessor") if name not in with_pil]
