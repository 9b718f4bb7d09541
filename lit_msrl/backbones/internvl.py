"""InternVL 3 and 3.5 in Hugging Face form (``OpenGVLab/InternVL3_5-8B-HF``), and the embedded tiny model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lit_msrl.backbones.base import Backbone

PROCESSOR_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


class InternVL(Backbone):
    """Tiles of a picture become ``image_seq_length`` tokens each, between ``<img>`` and ``</img>``."""

    model_types = ("internvl",)
    prefixes = (("model.multi_modal_projector", "projector"), ("model.vision_tower", "vision"))
    placeholder = "<IMG_CONTEXT>"

    def preprocess(self, images: list[Any]) -> Mapping[str, Tensor]:
        """Pictures as tiles: at most as many as a picture has pixels for, so that a smaller one takes fewer.

        That is, if the model's image processor cuts tiles (``crop_to_patches``); else each picture is one.
        """
        if not self.image_processor.crop_to_patches:
            return super().preprocess(images)
        cut = [
            self.image_processor(images=[image], max_patches=self._tiles(*image.size), return_tensors="pt")
            for image in images
        ]
        return {name: torch.cat([one[name] for one in cut]) for name in ("pixel_values", "num_patches")}

    def picture_tokens(self, width: int, height: int) -> int:
        """Its tiles' tokens, and the two that enclose them."""
        limits = {"max_patches": self._tiles(width, height)}
        tiles = self.image_processor.get_number_of_image_patches(height, width, limits)
        return tiles * self.config.image_seq_length + 2

    def _tiles(self, width: int, height: int) -> int:
        """Most tiles of a picture (a thumbnail comes on top of more than one)."""
        tile = self.image_processor.size["height"] * self.image_processor.size["width"]
        return max(1, min(self.image_processor.max_patches, width * height // tile))

    def expansions(self, pixels: Mapping[str, Tensor]) -> list[str]:
        """One run of context tokens per picture, as long as its tiles need."""
        counts = [int(n) * self.config.image_seq_length for n in pixels["num_patches"]]
        return [f"<img>{self.placeholder * count}</img>" for count in counts]

    def model_inputs(self, pixels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tiles, ``(tiles, 3, height, width)``."""
        return {"pixel_values": pixels["pixel_values"]}

    def rows_per_picture(self, pixels: Mapping[str, Tensor]) -> dict[str, list[int]]:
        """Tiles per picture."""
        return {"pixel_values": [int(n) for n in pixels["num_patches"]]}

    def features(self, model: Any, media: dict[str, Tensor]) -> Tensor:
        """The projected tiles, one after another."""
        return model.model.get_image_features(**media, return_dict=True).pooler_output.flatten(0, 1)

    def sight(self, model: Any) -> tuple[Any, str]:
        """The model itself."""
        return model.model, "get_image_features"

    def as_seen(self, features: Tensor) -> Any:
        """As of one large tile."""
        return SimpleNamespace(pooler_output=features[None])

    def write_processor(self, tokenizer: Any, folder: Path) -> None:
        """Also how many tokens a tile is, and the names by which the processor asks for its own."""
        super().write_processor(tokenizer, folder)
        about = {"processor_class": "InternVLProcessor", "image_seq_length": self.config.image_seq_length}
        (folder / "processor_config.json").write_text(json.dumps(about))
        file = folder / "tokenizer_config.json"
        settings = json.loads(file.read_text()) | {"model_specific_special_tokens": PROCESSOR_TOKENS}
        file.write_text(json.dumps(settings, indent=2, ensure_ascii=False))

    def processor_options(self) -> dict[str, Any]:
        """Tiles or not: the processor class cuts tiles whatever the image processor's configuration says."""
        return {"crop_to_patches": self.image_processor.crop_to_patches}

    def vision_layers(self, model: Any) -> Sequence[nn.Module]:
        """Of InternViT."""
        return model.model.vision_tower.encoder.layer

    @property
    def patches_per_token(self) -> int:
        """What pixel unshuffling puts together."""
        return round(self.config.downsample_ratio**-2)

    def image_token_ids(self) -> list[int]:
        """The context token."""
        return [self.config.image_token_id]
