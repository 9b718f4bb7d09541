"""text-2-video-human-preferences (Rapidata, and its siblings -pika2.2, -veo3, -wan2.1 ...): pairs of clips.

Schema: ``prompt, file_name1, file_name2`` and, for each of Preference, Coherence and Alignment,
``weighted_results1_X, weighted_results2_X, detailedResults_X``. The clips lie in the repository's
``Videos`` folder (``media_root``); some siblings give addresses (``data.urls.hosts``).
Label: the clip with the larger weight of the chosen dimension; equal weights are a tie. A missing weight
counts as 0, as in LightRFT; a row with neither is left out. The margin is the difference of weights.
Licence: Apache-2.0. Citation: Rapidata/text-2-video-human-preferences on the hub.
"""

from __future__ import annotations

from typing import Literal

from data_modules.datasets import fields
from data_modules.datasets.fields import Row
from lit_msrl.types import PreferenceExample

Dimension = Literal["Preference", "Coherence", "Alignment"]


def to_example(
    row: Row, label: Dimension = "Preference", min_margin: float = 0.0
) -> PreferenceExample | None:
    """Read one row.

    Args:
        row: The row.
        label: The dimension that decides.
        min_margin: Leave out rows whose weights differ by less.

    Raises:
        ValueError: A field is missing.
    """
    names = [f"weighted_results{i}_{label}" for i in (1, 2)]
    for name in names:
        if name not in row:
            raise ValueError(f"field {name!r} (the label) is missing")
    if not any(fields.has(row, name) for name in names):
        return None
    first, second = (fields.number(row, name) if fields.has(row, name) else 0.0 for name in names)
    if abs(first - second) < min_margin:
        return None
    return PreferenceExample(
        id=fields.identity(row),
        task_type="video generation",
        prompt=fields.text(row, "prompt"),
        winner=fields.better(first, second),
        media=(fields.media(row, "file_name1", "video"), fields.media(row, "file_name2", "video")),
        margin=abs(first - second),
        source="text-2-video-human-preferences",
        licence="Apache-2.0",
    )
