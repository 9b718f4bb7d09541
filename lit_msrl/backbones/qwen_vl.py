"""Qwen2.5-VL and Qwen3-VL: native resolution, M-RoPE positions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
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
