"""What several benchmarks need: ids that do not depend on the order of rows, and scores with ties."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from lit_msrl.ballots import Judged, Records, in_both_orders, margin, same_number
from lit_msrl.figures import Figure, share
from lit_msrl.types import Media, Winner


def digest(*parts: str | Media) -> str:
    """Eight hexadecimal digits of texts and media, for ids of sources that have none or repeat theirs.

    Example:
        >>> digest("a", "b") == digest("a", "b"), digest("a", "b") == digest("ab")
        (True, False)
    """
    state = hashlib.blake2b(digest_size=4)
    for part in parts:
        content = part.source if isinstance(part, Media) else part
        state.update(content if isinstance(content, bytes) else str(content).removeprefix("./").encode())
        state.update(b"\0")
    return state.hexdigest()


def three_way(judged: Sequence[Judged], chosen: Sequence[Records], *, unread: Winner | None) -> list[Figure]:
    """Accuracy with ties (three classes) and without (examples that have a winner).

    Args:
        judged: The examples.
        chosen: The judgements of each that count.
        unread: What a judgement is taken to say that could not be read; ``None`` is always wrong.
    """
    return with_and_without_ties(
        judged,
        [sum((r.preferred or unread) == r.winner for r in records) / len(records) for records in chosen],
    )


def orders_as_ties(judged: Sequence[Judged]) -> list[Figure]:
    """Three classes for a judge that never says "tie": it is a tie when its two orders balance."""
    margins = map(margin, in_both_orders(same_number(judged)))
    said: list[Winner] = ["tie" if m == 0 else 1 if m > 0 else 2 for m in margins]
    return with_and_without_ties(judged, [v == j.example.winner for v, j in zip(said, judged, strict=True)])


def with_and_without_ties(judged: Sequence[Judged], hits: Sequence[float]) -> list[Figure]:
    """The share of hits among all examples, and among those that have a winner."""
    clear = [float(j.example.winner != "tie") for j in judged]
    return [
        share("with ties", hits),
        share("without ties", (hit * flag for hit, flag in zip(hits, clear, strict=True)), clear),
    ]
