"""What the policy must know of a Hugging Face family of vision-language models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor
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
