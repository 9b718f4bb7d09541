"""RLAIF-V (openbmb/RLAIF-V-Dataset): answers to questions about a picture, ranked by models.

Schema: ``ds_name, image, question, chosen, rejected, origin_dataset, origin_split, idx, image_path``;
``image`` holds the encoded picture.
Label: ``chosen`` is better; it is stored as candidate 1.
Licence: CC-BY-NC-4.0. Citation: Yu et al., RLAIF-V, arXiv:2405.17220.
"""

from __future__ import annotations

from data_modules.datasets import fields
from data_modules.datasets.fields import Row
from lit_msrl.types import PreferenceExample


def to_example(row: Row) -> PreferenceExample:
    """Read one row.

    Raises:
        ValueError: A field is missing.
    """
    return PreferenceExample(
        id=fields.identity(row),
        task_type="image understanding",
        prompt=fields.text(row, "question"),
        winner=1,
        candidates=(fields.text(row, "chosen"), fields.text(row, "rejected")),
        media=(fields.media(row, "image", "image"),),
        source="RLAIF-V",
        licence="CC-BY-NC-4.0",
    )
