"""Which of an example's judgements a protocol counts, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lit_msrl.prompts import shown_first
from lit_msrl.records import JudgementRecord
from lit_msrl.types import PreferenceExample, Winner
from lit_msrl.voting import majority

Records = tuple[JudgementRecord, ...]


class NotJudged(ValueError):
    """A protocol needs judgements that were not made."""


@dataclass(frozen=True)
class Judged:
    """An example and what a judge said of it.

    Attributes:
        example: The example.
        records: Its judgements, sample after sample; which order comes first, a hash decides.
    """

    example: PreferenceExample
    records: Records

    @property
    def item(self) -> str:
        """What the example is part of; the example itself, where the source has no more to say."""
        return self.example.facts.get("item", self.example.id)


def pair_up(examples: Iterable[PreferenceExample], records: Iterable[JudgementRecord]) -> list[Judged]:
    """The examples that were judged, sorted by id, so that nothing depends on the order of rows."""
    found: dict[str, list[JudgementRecord]] = {}
    for record in records:
        found.setdefault(record.id, []).append(record)
    return [
        Judged(example, tuple(sorted(found[example.id], key=_turn)))
        for example in sorted(examples, key=lambda example: example.id)
        if example.id in found
    ]


def _turn(record: JudgementRecord) -> tuple[int, bool]:
    return record.sample, (record.order == "BA") != coin(record.id, record.sample)


def coin(name: str, sample: int) -> bool:
    """Whether a protocol with a random order shows candidate 2 first in this sample of this example."""
    return shown_first(f"{name}:{sample}")


# ---- which judgements ----------------------------------------------------------------------------------


def in_order(judged: Sequence[Judged], swapped: Callable[[PreferenceExample], bool]) -> list[Records]:
    """The judgements in the order that a rule gives each example.

    Raises:
        NotJudged: An example was not judged in that order.
    """
    chosen = [tuple(r for r in j.records if (r.order == "BA") == swapped(j.example)) for j in judged]
    lacking = sum(not records for records in chosen)
    if lacking:
        raise NotJudged(f"{lacking} of {len(judged)} examples were not judged in the order it shows")
    return chosen


def in_random_order(judged: Sequence[Judged]) -> list[Records]:
    """One judgement per sample: where both orders were asked, the coin's; else the one there is."""
    return [tuple({r.sample: r for r in reversed(j.records)}[s] for s in _samples(j)) for j in judged]


def in_both_orders(judged: Sequence[Judged]) -> list[Records]:
    """The judgements of samples that have both orders.

    Raises:
        NotJudged: An example has no such sample.
    """
    chosen = [tuple(r for r in j.records if _orders(j, r.sample) == 2) for j in judged]
    lacking = sum(not records for records in chosen)
    if lacking:
        raise NotJudged(f"{lacking} of {len(judged)} examples were not judged in both orders")
    return chosen


def same_number(judged: Sequence[Judged]) -> list[Judged]:
    """As many samples of each example as every example has.

    Where voting stopped early, an example has the fewer judgements the more they agree. A mean over them all
    would be biased; over the samples that were drawn of every example it is not.
    """
    least = min(len(_samples(j)) for j in judged)
    return [Judged(j.example, tuple(r for r in j.records if r.sample in _samples(j)[:least])) for j in judged]


def _samples(judged: Judged) -> list[int]:
    return sorted({record.sample for record in judged.records})


def _orders(judged: Judged, sample: int) -> int:
    return len({record.order for record in judged.records if record.sample == sample})


# ---- what they come to ---------------------------------------------------------------------------------


def right(records: Records) -> float:
    """The share of judgements that are right; one that could not be read is wrong."""
    return sum(record.correct for record in records) / len(records)


def right_or_coin(records: Records) -> float:
    """As ``right``, where a coin is tossed for what could not be read: a half, its mean."""
    return sum(0.5 if record.preferred is None else record.correct for record in records) / len(records)


def all_right(records: Records) -> bool:
    """Whether every judgement is right."""
    return all(record.correct for record in records)


def agreement(records: Records) -> bool | None:
    """Whether more than half of the judgements are right, or wrong; ``None`` where neither."""
    agree = sum(record.correct for record in records)
    reject = sum(record.preferred is not None and not record.correct for record in records)
    return True if 2 * agree > len(records) else False if 2 * reject > len(records) else None


def vote(records: Records) -> Winner | None:
    """What most judgements say; in a draw the first of them that could be read; ``None`` when none could."""
    said: list[Winner | None] = [record.preferred for record in records]
    return majority(said) or next((verdict for verdict in said if verdict is not None), None)


def margin(records: Records) -> float:
    """How far the judgements prefer candidate 1, from -1 to 1; a tie or an unread verdict prefers neither."""
    return sum((record.preferred == 1) - (record.preferred == 2) for record in records) / len(records)


def confidence(records: Records, verdict: Winner | None) -> float:
    """How sure the judgements are of a verdict: their mean probability of it, 0 of no verdict.

    A judgement without a confidence of its own is sure of what it says; an unread one says a half.
    """
    if verdict is None:
        return 0.0
    said = [(r.preferred, 1.0 if r.confidence is None else r.confidence) for r in records]
    return sum(0.5 if p is None else c if p == verdict else 1 - c for p, c in said) / len(said)
