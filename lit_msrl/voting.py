"""Majority votes over sampled judgements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lit_msrl.types import Letter


def majority(votes: Sequence[Letter | None]) -> Letter | None:
    """The verdict most judgements reached; ``None`` when undecided or when none could be read.

    Example:
        >>> majority(["A", "B", "A", None]), majority(["A", "B"]), majority([None])
        ('A', None, None)
    """
    counts: Counter[Letter] = Counter(vote for vote in votes if vote is not None)
    return None if not counts or counts["A"] == counts["B"] else max(counts, key=lambda vote: counts[vote])
