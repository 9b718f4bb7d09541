"""What the policy must know of a Hugging Face family of vision-language models."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

Part = Literal["language", "projector", "vision"]
PARTS: tuple[Part, ...] = ("language", "projector", "vision")


class Backbone(ABC):
    """One family: the names of its parts, how its pictures become tokens, how its positions count.

    Attributes:
        model_types: ``config.model_type`` values this class serves.
        prefixes: Parameter-name prefix of each part, the most specific first; all else is ``language``.
        placeholder: The token the chat template writes once per picture.
    """

    model_types: tuple[str, ...]
    prefixes: tuple[tuple[str, Part], ...]
    placeholder: str

    def __init__(self, config: PreTrainedConfig, image_processor: Any) -> None:
        self.config = config
        self.image_processor = image_processor

    def part(self, parameter: str) -> Part:
        """The part a parameter belongs to."""
        for prefix, part in self.prefixes:
            if parameter.startswith(prefix):
                return part
        return "language"

    def layers(self, model: Any) -> Sequence[nn.Module]:
        """The decoder layers of the language model: what is sharded, and what can be run again."""
        return model.model.language_model.layers

    @abstractmethod
    def vision_layers(self, model: Any) -> Sequence[nn.Module]:
        """The layers of the vision tower."""

    @property
    @abstractmethod
    def patches_per_token(self) -> int:
        """Vision tokens that the projector turns into one token of the prompt."""

    def preprocess(self, images: list[Any]) -> Mapping[str, Tensor]:
        """Pictures as the tensors the image processor makes of them."""
        return self.image_processor(images=images, return_tensors="pt")

    @abstractmethod
    def expansions(self, pixels: Mapping[str, Tensor]) -> list[str]:
        """For each picture, the tokens that take the place of its ``placeholder``."""

    @abstractmethod
    def picture_tokens(self, width: int, height: int) -> int:
        """How many tokens `expansions` gives a picture of this size; no pixel is looked at."""

    @abstractmethod
    def model_inputs(self, pixels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of the image processor's output that the model's forward takes."""

    @abstractmethod
    def rows_per_picture(self, pixels: Mapping[str, Tensor]) -> dict[str, list[int]]:
        """For each tensor of `model_inputs`, how many of its rows each picture owns."""

    @abstractmethod
    def image_token_ids(self) -> list[int]:
        """Tokens that stand for pictures and must never be sampled."""

    @abstractmethod
    def features(self, model: Any, media: dict[str, Tensor]) -> Tensor:
        """What the vision tower and the projector make of pictures, ``(N, F)``, a row per picture token."""

    @abstractmethod
    def sight(self, model: Any) -> tuple[Any, str]:
        """The object, and the name of its method, that the model's forward asks for ``features``."""

    @abstractmethod
    def as_seen(self, features: Tensor) -> Any:
        """``features`` in the form in which that method returns them."""

    @contextlib.contextmanager
    def shown(self, model: Any, media: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """The media as the model's forward takes them; ``features`` keep the tower from running."""
        if "features" not in media:
            yield media
            return
        features = media["features"]
        owner, method = self.sight(model)
        setattr(owner, method, lambda *_, **__: self.as_seen(features))  # shadows the class's
        try:
            yield {k: v for k, v in media.items() if k != "features"} | {"pixel_values": features}
        finally:
            delattr(owner, method)

    def write_processor(self, tokenizer: Any, folder: Path) -> None:
        """Write tokenizer and image processor as transformers' processor classes, and vLLM, read them."""
        tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    def processor_options(self) -> dict[str, Any]:
        """What such a processor must be told on each call to do what `preprocess` does."""
        return {}

    def position_ids(
        self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, media: dict[str, Tensor]
    ) -> Tensor:
        """Positions of left-padded prompts: ``(P, L)``, or ``(3, P, L)`` for M-RoPE."""
        return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def next_positions(positions: Tensor, steps: Tensor) -> Tensor:
    """Positions of completion tokens.

    Args:
        positions: Of the prompts, ``(P, L)`` or ``(3, P, L)``.
        steps: Distance from the prompt's end, ``(P, N)``, counted from zero.

    Returns:
        ``(P, N)`` or ``(3, P, N)``: text goes on after the largest position used so far.
    """
    if positions.dim() == 2:
        return positions.amax(-1, keepdim=True) + 1 + steps
    last = positions.amax(dim=(0, 2))[:, None]
    return (last + 1 + steps).expand(positions.shape[0], *steps.shape)
