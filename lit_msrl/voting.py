"""Majority votes over sampled judgements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TypeVar

Verdict = TypeVar("Verdict", bound=Hashable)


def majority(votes: Sequence[Verdict | None]) -> Verdict | None:
    """The verdict most judgements reached; ``None`` when undecided or when none could be read.

    Example:
        >>> majority(["A", "B", "A", None]), majority(["A", "B"]), majority([None])
        ('A', None, None)
    """
    counts = Counter(vote for vote in votes if vote is not None).most_common(2)
    if not counts or (len(counts) == 2 and counts[0][1] == counts[1][1]):
        return None
    return counts[0][0]


def rounds(votes: int, *, early_stop: bool) -> list[range]:
    """The samples to draw one after the other; nothing can be decided before the first round is over.

    Example:
        >>> rounds(5, early_stop=True), rounds(5, early_stop=False)
        ([range(0, 3), range(3, 4), range(4, 5)], [range(0, 5)])
    """
    first = votes // 2 + 1 if early_stop else votes
    return [range(0, first), *(range(i, i + 1) for i in range(first, votes))]


def decided(votes: Sequence[Hashable | None], planned: int) -> bool:
    """Whether one verdict has more than half of all votes that will ever be cast.

    Example:
        >>> decided([1, 1], 3), decided([1, 2, 1], 5), decided([None, None], 3)
        (True, False, False)
    """
    counts = Counter(vote for vote in votes if vote is not None).most_common(1)
    return bool(counts) and 2 * counts[0][1] > planned
