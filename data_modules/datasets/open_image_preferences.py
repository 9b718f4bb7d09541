"""open-image-preferences-v1-binarized (data-is-better-together): pairs of pictures made for a prompt.

Schema: ``prompt, chosen, rejected``, the two as encoded pictures; further columns are not used.
Label: ``chosen`` is better; it is stored as candidate 1. (``open-image-preferences-v1`` without
``-binarized`` has four pictures per row and no labels; it is refused.)
Licence: Apache-2.0. Citation: data-is-better-together/open-image-preferences-v1 on the hub.
"""

from __future__ import annotations

from data_modules.datasets import fields
from data_modules.datasets.fields import Row
from lit_msrl.types import PreferenceExample


def to_example(row: Row) -> PreferenceExample:
    """Read one row.

    Raises:
        ValueError: A field is missing, or the row is of the set without labels.
    """
    if "chosen" not in row and "image_quality_dev" in row:
        raise ValueError(
            "field 'chosen' is missing: open-image-preferences-v1 has no labels, its -binarized form has"
        )
    return PreferenceExample(
        id=fields.identity(row),
        task_type="image generation",
        prompt=fields.text(row, "prompt"),
        winner=1,
        media=(fields.media(row, "chosen", "image"), fields.media(row, "rejected", "image")),
        source="open-image-preferences",
        licence="Apache-2.0",
    )
