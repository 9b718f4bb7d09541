"""VideoGen-RewardBench (KwaiVGI): pairs of clips made for a prompt, judged on four dimensions.

Schema: ``path_A, path_B, prompt, VQ, MQ, TA, Overall`` and, unused here, models, frame rates and counts.
VideoAlign's training examples have the same columns without ``Overall``.
Label: ``A``, ``B`` or ``same`` for visual and motion quality, text alignment and overall; A is candidate 1.
Licence: Apache-2.0 (VideoAlign's examples: MIT). Citation: Liu et al., Improving Video Generation with Human
Feedback, arXiv:2501.13918.
"""

from __future__ import annotations

from typing import Literal

from data_modules.datasets import fields
from data_modules.datasets.fields import Row
from lit_msrl.types import PreferenceExample, Winner

Dimension = Literal["Overall", "VQ", "TA", "MQ"]
_LABELS: dict[str, Winner] = {"A": 1, "B": 2, "same": "tie"}


def to_example(row: Row, label: Dimension = "Overall") -> PreferenceExample:
    """Read one row.

    Args:
        row: The row.
        label: The dimension that decides; without a column ``Overall`` choose ``VQ``, ``TA`` or ``MQ``.

    Raises:
        ValueError: A field is missing or the label is unknown.
    """
    if label not in row:
        raise ValueError(
            f"field {label!r} (the label) is missing; choose another with options.label=VQ, TA or MQ"
        )
    return PreferenceExample(
        id=fields.identity(row),
        task_type="video generation",
        prompt=fields.text(row, "prompt"),
        winner=fields.choice(row, label, _LABELS),
        media=(fields.media(row, "path_A", "video"), fields.media(row, "path_B", "video")),
        source="VideoGen-RewardBench",
        licence="Apache-2.0",
    )
