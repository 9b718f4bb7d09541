"""Qwen2.5-VL and Qwen3-VL: native resolution, M-RoPE positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_msrl.backbones.base import Backbone


class QwenVL(Backbone):
    """A picture becomes one token per merged patch of its grid."""

    model_types = ("qwen2_5_vl", "qwen3_vl")
    prefixes = (
        ("model.visual.merger", "projector"),
        ("model.visual.deepstack_merger_list", "projector"),
        ("model.visual", "vision"),
    )
    placeholder = "<|image_pad|>"

    def expansions(self, pixels: Mapping[str, Tensor]) -> list[str]:
        """``t * h * w / merge^2`` pad tokens per picture (the template writes the start and end tokens)."""
        merge = self.config.vision_config.spatial_merge_size**2
        return [self.placeholder * (int(grid.prod()) // merge) for grid in pixels["image_grid_thw"]]

    def picture_tokens(self, width: int, height: int) -> int:
        """The merged patches of the size it is resized to."""
        patches = self.image_processor.get_number_of_image_patches(height, width)
        return patches // self.config.vision_config.spatial_merge_size**2

    def model_inputs(self, pixels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Patches and their grids."""
        return {name: pixels[name] for name in ("pixel_values", "image_grid_thw")}

    def rows_per_picture(self, pixels: Mapping[str, Tensor]) -> dict[str, list[int]]:
        """Patches per picture, and one grid."""
        grids = pixels["image_grid_thw"]
        return {"pixel_values": [int(grid.prod()) for grid in grids], "image_grid_thw": [1] * len(grids)}

    def features(self, model: Any, media: dict[str, Tensor]) -> Tensor:
        """The merged patches; for Qwen3-VL beside what its first language layers take in (DeepStack)."""
        seen = model.model.visual(media["pixel_values"], grid_thw=media["image_grid_thw"], return_dict=True)
        deeper = seen.deepstack_features if self.config.model_type == "qwen3_vl" else []
        return torch.cat([seen.pooler_output, *deeper], dim=-1)

    def sight(self, model: Any) -> tuple[Any, str]:
        """The tower, which has the projector inside."""
        return model.model.visual, "forward"

    def as_seen(self, features: Tensor) -> Any:
        """As of one large picture."""
        first, *deeper = features.split(self.config.text_config.hidden_size, dim=-1)
        return SimpleNamespace(pooler_output=first, deepstack_features=deeper)

    def vision_layers(self, model: Any) -> Sequence[nn.Module]:
        """Its blocks."""
        return model.model.visual.blocks

    @property
    def patches_per_token(self) -> int:
        """What the merger puts together."""
        return self.config.vision_config.spatial_merge_size**2

    def image_token_ids(self) -> list[int]:
        """Picture, video and vision delimiters."""
        c = self.config
        return [c.image_token_id, c.video_token_id, c.vision_start_token_id, c.vision_end_token_id]

    def position_ids(
        self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, media: dict[str, Tensor]
    ) -> Tensor:
        """Three-dimensional positions, computed by the model itself and given explicitly to every forward."""
        if not media:
            return super().position_ids(model, input_ids, attention_mask, media).expand(3, *input_ids.shape)
        kinds = (input_ids == self.config.image_token_id).int()
        positions, _ = model.model.get_rope_index(  # type: ignore[union-attr, operator]
            input_ids,
            mm_token_type_ids=kinds,
            image_grid_thw=media["image_grid_thw"],
            attention_mask=attention_mask,
        )
        return positions
