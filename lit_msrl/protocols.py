"""Ways to compute numbers from judgements: what a protocol is, and those that hold for every benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from lit_msrl import ballots
from lit_msrl.ballots import Judged
from lit_msrl.figures import Figure, calibration_error, grouped, selective, share
from lit_msrl.metrics import swap_pairs
from lit_msrl.types import PreferenceExample
from lit_msrl.voting import decided

COVERAGES = (0.5, 0.8)
Group = Callable[[PreferenceExample], str]


@dataclass(frozen=True)
class Protocol:
    """A way to compute a benchmark's numbers.

    Attributes:
        how: One line that says it to a reader.
        figures: From what was judged to its figures; may raise ``NotJudged``.
    """

    how: str
    figures: Callable[[Sequence[Judged]], list[Figure]]


def everywhere(group: Group, *, macro: bool) -> dict[str, Protocol]:
    """The protocols that this project adds to every benchmark.

    Args:
        group: The group of an example in the benchmark's own tables.
        macro: Whether the mean over groups is a figure that somebody reports.
    """
    return {
        "strict": Protocol(
            "every judgement counts alike, all orders that were asked; unread is wrong",
            partial(_strict, group, macro, ballots.right),
        ),
        "robust": Protocol(
            "an example is right when it is in both orders and in every sample; unread is wrong",
            partial(_strict, group, macro, ballots.all_right),
        ),
        "judge": Protocol("what the judge does, whoever is right", _behaviour),
        "voting": Protocol(
            "the majority of the first judgements of each example, orders in turn; a draw goes to the first",
            _voting,
        ),
        "confidence": Protocol(
            "of the vote: how far confidence misses accuracy, and how right the most confident part is",
            _confidence,
        ),
    }


def _strict(
    group: Group, macro: bool, rule: Callable[[ballots.Records], float], judged: Sequence[Judged]
) -> list[Figure]:
    same = ballots.same_number(judged)
    chosen = ballots.in_both_orders(same) if rule is ballots.all_right else [j.records for j in same]
    groups = [group(j.example) for j in judged]
    return grouped(groups, map(rule, chosen), macro="macro" if macro else None)


def _behaviour(judged: Sequence[Judged]) -> list[Figure]:
    same = ballots.same_number(judged)
    counts = [len(j.records) for j in same]
    choices = [sum(r.decided for r in j.records) for j in same]
    pairs = [swap_pairs(j.records) for j in same]
    figures = [
        share("parse failures", (sum(r.preferred is None for r in j.records) for j in same), counts),
        share("first-position rate", (sum(r.chose_first for r in j.records) for j in same), choices),
    ]
    if any(pairs):
        figures.append(share("swap consistency", map(sum, pairs), map(len, pairs)))
    return figures


def _voting(judged: Sequence[Judged]) -> list[Figure]:
    most = max(len(j.records) for j in judged)
    if most < 3:
        return []  # of two votes, the first decides
    steps = sorted({2**i for i in range(most.bit_length()) if i != 1} | {most})
    figures = [share(f"vote@{k}", (_right(j.records[:k], j) for j in judged)) for k in steps]
    if all(r.tokens is not None for j in judged for r in j.records):
        figures += [share(f"tokens@{k}", (_tokens(j.records[:k]) for j in judged)) for k in steps]
        figures.append(share(f"tokens@{most}, stopped when decided", (_needed(j, most) for j in judged)))
    return figures


def _confidence(judged: Sequence[Judged]) -> list[Figure]:
    if all(len(j.records) == 1 and j.records[0].confidence is None for j in judged):
        return []
    sure = [ballots.confidence(j.records, ballots.vote(j.records)) for j in judged]
    right = [_right(j.records, j) for j in judged]
    figures = [calibration_error("calibration error", sure, right)]
    return figures + [selective(f"surest {part:.0%} right", sure, right, part) for part in COVERAGES]


def _right(records: ballots.Records, judged: Judged) -> bool:
    return ballots.vote(records) == judged.example.winner


def _tokens(records: ballots.Records) -> int:
    return sum(record.tokens or 0 for record in records)


def _needed(judged: Judged, planned: int) -> int:
    """Tokens until the vote is decided."""
    said = [record.preferred for record in judged.records]
    enough = next((i for i in range(1, len(said)) if decided(said[:i], planned)), len(said))
    return _tokens(judged.records[:enough])
