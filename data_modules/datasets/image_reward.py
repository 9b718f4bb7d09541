"""ImageRewardDB (zai-org/ImageRewardDB, THUDM/ImageReward's ``data/*.json``): pictures for a prompt, ranked.

Schema: ``id, prompt, generations: [path], ranking: [int]``; rank 1 is best, ranks may be shared or skipped.
Label: a row becomes the pair of its first best and first worst picture, or every pair (``pairs="all"``, then
with ties); a pair keeps the source's order, and its id names the two. The margin is the difference of ranks.
Licence: Apache-2.0. Citation: Xu et al., ImageReward, arXiv:2304.05977.
"""

from __future__ import annotations

from data_modules.datasets import fields
from data_modules.datasets.fields import Pairs, Row
from lit_msrl.types import Media, PreferenceExample


def to_example(row: Row, pairs: Pairs = "best-worst") -> list[PreferenceExample]:
    """Read one row.

    Args:
        row: The row.
        pairs: ``best-worst`` or ``all``.

    Raises:
        ValueError: A field is missing, or there is not one rank per picture.
    """
    pictures, ranks = row.get("generations"), row.get("ranking")
    if not isinstance(pictures, list) or not all(isinstance(name, str) and name for name in pictures):
        raise ValueError("field 'generations' must be a list of paths")
    if not isinstance(ranks, list) or len(ranks) != len(pictures) or not all(map(_is_rank, ranks)):
        raise ValueError(f"field 'ranking' is {ranks!r}; expected a rank from 1 for each of 'generations'")
    return [
        PreferenceExample(
            id=f"{fields.identity(row)}-{i}-{j}",
            task_type="image generation",
            prompt=fields.text(row, "prompt"),
            winner=fields.better(-ranks[i], -ranks[j]),
            media=tuple(Media("image", pictures[k], "generations") for k in (i, j)),
            margin=float(abs(ranks[i] - ranks[j])),
            source="ImageRewardDB",
            licence="Apache-2.0",
        )
        for i, j in fields.ranked_pairs([-rank for rank in ranks], pairs)
    ]


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and value >= 1
