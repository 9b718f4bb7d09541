"""OpenAI-4o_t2i_human_preference (Rapidata): pairs of pictures made for a prompt, voted on by people.

Schema: ``prompt, image1, image2, model1, model2`` and, for each of preference, coherence and alignment,
``weighted_results_image1_X, weighted_results_image2_X, detailed_results_X``; the pictures are encoded.
Rapidata's other picture sets have the same columns.
Label: the picture with the larger weight of the chosen dimension; equal weights are a tie. The margin is the
difference of weights.
Licence: CDLA-Permissive-2.0. Citation: Rapidata/OpenAI-4o_t2i_human_preference on the hub.
"""

from __future__ import annotations

from typing import Literal

from data_modules.datasets import fields
from data_modules.datasets.fields import Row
from lit_msrl.types import PreferenceExample

Dimension = Literal["preference", "coherence", "alignment"]


def to_example(
    row: Row, label: Dimension = "preference", min_margin: float = 0.0
) -> PreferenceExample | None:
    """Read one row.

    Args:
        row: The row.
        label: The dimension that decides.
        min_margin: Leave out rows whose weights differ by less.

    Raises:
        ValueError: A field is missing.
    """
    first, second = (fields.number(row, f"weighted_results_image{i}_{label}") for i in (1, 2))
    if abs(first - second) < min_margin:
        return None
    return PreferenceExample(
        id=fields.identity(row),
        task_type="image generation",
        prompt=fields.text(row, "prompt"),
        winner=fields.better(first, second),
        media=(fields.media(row, "image1", "image"), fields.media(row, "image2", "image")),
        margin=abs(first - second),
        source="OpenAI-4o_t2i_human_preference",
        licence="CDLA-Permissive-2.0",
    )
