"""One file per Hugging Face family; ``backbone_for`` picks the family by ``config.model_type``."""

from typing import Any

from transformers import PreTrainedConfig

from lit_msrl.backbones.base import PARTS, Backbone, Part, next_positions
from lit_msrl.backbones.internvl import InternVL
from lit_msrl.backbones.qwen_vl import QwenVL

FAMILIES: tuple[type[Backbone], ...] = (InternVL, QwenVL)
__all__ = ["FAMILIES", "PARTS", "Backbone", "InternVL", "Part", "QwenVL", "backbone_for", "next_positions"]


def backbone_for(config: PreTrainedConfig, image_processor: Any) -> Backbone:
    """The backbone class that serves a model.

    Raises:
        ValueError: No family knows this ``model_type``.
    """
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family(config, image_processor)
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise ValueError(
        f"model_type {config.model_type!r} is not supported yet; known: {known} "
        "(add a file in lit_msrl/backbones)"
    )
