"""A benchmark and its protocols; records of judgements in, every published form of the number out.

A benchmark is data (``to_example`` of its module), a grouping, and *protocols*: each the way some paper or
script computes its numbers. The protocols here hold for every benchmark; its own are beside its data.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial as bind
from typing import Any

from lit_msrl import ballots, metrics
from lit_msrl.ballots import Judged, NotJudged
from lit_msrl.figures import (
    Estimate,
    Figure,
    calibration_error,
    differences,
    estimate,
    grouped,
    selective,
    share,
)
from lit_msrl.metrics import swap_pairs
from lit_msrl.records import JudgementRecord
from lit_msrl.types import PreferenceExample
from lit_msrl.voting import decided

COVERAGES = (0.5, 0.8)


@dataclass(frozen=True)
class Protocol:
    """A way to compute a benchmark's numbers.

    Attributes:
        how: One line that says it to a reader.
        figures: From what was judged to its figures; may raise ``NotJudged``.
    """

    how: str
    figures: Callable[[Sequence[Judged]], list[Figure]]


@dataclass(frozen=True)
class Benchmark:
    """What ``evaluate.py`` has to know of a benchmark.

    Attributes:
        title: Its name.
        version: Of this file's reading of it; it changes when a number could.
        group: The group of an example in its own tables.
        protocols: Published ways to compute its numbers, the official one first.
        macro: Whether the mean over groups is a figure that somebody reports.
        sizes: How many examples the published versions have, by name.
        subset: The hub dataset's configuration.
        split: The hub dataset's split.
    """

    title: str
    version: int
    group: Callable[[PreferenceExample], str]
    protocols: Mapping[str, Protocol]
    macro: bool = True
    sizes: Mapping[str, int] = field(default_factory=dict)
    subset: str | None = None
    split: str = "test"


@dataclass(frozen=True)
class Section:
    """The figures of one protocol."""

    protocol: str
    how: str
    figures: Sequence[Estimate]


@dataclass(frozen=True)
class Scorecard:
    """All that can be said of a judge on a benchmark.

    Attributes:
        benchmark: Its title.
        version: Its version.
        data: A fingerprint of the examples that were scored: equal when ids and labels are.
        examples: How many were scored.
        absent: How many of the data were not judged.
        judgements: How many were read.
        sections: One per protocol.
        left_out: Protocols that need judgements which were not made, and why.
    """

    benchmark: str
    version: int
    data: str
    examples: int
    absent: int
    judgements: int
    sections: Sequence[Section]
    left_out: Mapping[str, str]

    def __getitem__(self, name: tuple[str, str]) -> Estimate:
        """A figure by protocol and name.

        Raises:
            KeyError: There is no such figure.
        """
        found = {(s.protocol, f.name): f for s in self.sections for f in s.figures}
        return found[name]

    def to_json(self) -> dict[str, Any]:
        """The scorecard in plain JSON values, a row per figure."""
        rows = [
            {
                "protocol": s.protocol,
                "figure": f.name,
                "value": None if math.isnan(f.value) else f.value,
                "ci95": f.ci95,
                "n": f.n,
            }
            for s in self.sections
            for f in s.figures
        ]
        parts = {name: value for name, value in vars(self).items() if name != "sections"}
        return {**parts, "protocols": {s.protocol: s.how for s in self.sections}, "figures": rows}


def score(
    benchmark: Benchmark,
    examples: Sequence[PreferenceExample],
    records: Sequence[JudgementRecord],
    *,
    seed: int = 0,
    partial: bool = False,
) -> Scorecard:
    """Score a judge's records.

    Args:
        benchmark: The benchmark.
        examples: Its examples.
        records: Judgements of them.
        seed: Seed of the bootstrap.
        partial: Score what was judged, even if that is not all.

    Raises:
        ValueError: Examples were not judged, and ``partial`` is off.
    """
    judged = _cover(examples, records, partial)
    found, left_out = _protocols(benchmark, judged)
    every = [figure for _, figures in found.values() for figure in figures]
    estimates = iter(estimate(every, [j.item for j in judged], seed))
    sections = [
        Section(name, how, [next(estimates) for _ in figures]) for name, (how, figures) in found.items()
    ]
    count = sum(len(j.records) for j in judged)
    absent = len(examples) - len(judged)
    data = fingerprint([j.example for j in judged])
    return Scorecard(benchmark.title, benchmark.version, data, len(judged), absent, count, sections, left_out)


def compare(
    benchmark: Benchmark,
    examples: Sequence[PreferenceExample],
    a: Sequence[JudgementRecord],
    b: Sequence[JudgementRecord],
    seed: int = 0,
) -> tuple[list[Section], dict[str, Any]]:
    """Judge ``a`` less judge ``b`` in every figure, paired, and the tests of ``metrics.compare``.

    Where the two were not asked the same questions (another number of samples), the tests compare their
    votes.

    Raises:
        ValueError: They did not judge the same examples.
    """
    first, second = ballots.pair_up(examples, a), ballots.pair_up(examples, b)
    ids = [{j.example.id for j in judged} for judged in (first, second)]
    if not first or ids[0] != ids[1]:
        alone = len(ids[0] ^ ids[1])
        raise ValueError(f"compare two judges on the same examples; {alone} were judged by one of them only")
    (of_a, _), (of_b, _) = _protocols(benchmark, first), _protocols(benchmark, second)
    sections = []
    for name in [name for name in of_a if name in of_b]:
        named = {figure.name: figure for figure in of_b[name][1]}
        pairs = [(figure, named[figure.name]) for figure in of_a[name][1] if figure.name in named]
        gaps = differences([x for x, _ in pairs], [y for _, y in pairs], [j.item for j in first], seed)
        sections.append(Section(name, of_a[name][0], gaps))
    asked = [{(r.id, r.order, r.sample) for r in records} for records in (a, b)]
    same = asked[0] == asked[1]
    tests = metrics.compare(a, b, seed) if same else metrics.compare(_votes(first), _votes(second), seed)
    return sections, tests | {"of": "judgements" if same else "votes"}


def fingerprint(examples: Sequence[PreferenceExample]) -> str:
    """A short hash of ids and labels, whatever their order."""
    lines = sorted(f"{example.id}\t{example.winner}" for example in examples)
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=6).hexdigest()


def _cover(
    examples: Sequence[PreferenceExample], records: Sequence[JudgementRecord], partial: bool
) -> list[Judged]:
    judged = ballots.pair_up(examples, records)
    absent = len(examples) - len(judged)
    if not judged or (absent and not partial):
        known = {j.example.id for j in judged}
        one = next(example.id for example in examples if example.id not in known)
        raise ValueError(
            f"{absent} of {len(examples)} examples have no record, such as {one!r}; "
            "judge them, or score what there is with --partial"
        )
    return judged


def _protocols(
    benchmark: Benchmark, judged: Sequence[Judged]
) -> tuple[dict[str, tuple[str, list[Figure]]], dict[str, str]]:
    found, left_out = {}, {}
    for name, protocol in {**benchmark.protocols, **everywhere(benchmark)}.items():
        try:
            figures = protocol.figures(judged)
        except NotJudged as reason:
            left_out[name] = str(reason)
            continue
        if figures:
            found[name] = protocol.how, figures
    return found, left_out


# ---- protocols that hold everywhere --------------------------------------------------------------------


def everywhere(benchmark: Benchmark) -> dict[str, Protocol]:
    """The protocols that this project adds to every benchmark."""
    return {
        "strict": Protocol(
            "every judgement counts alike, all orders that were asked; unread is wrong",
            bind(_strict, benchmark, ballots.right),
        ),
        "robust": Protocol(
            "an example is right when it is in both orders and in every sample; unread is wrong",
            bind(_strict, benchmark, ballots.all_right),
        ),
        "judge": Protocol("what the judge does, whoever is right", _behaviour),
        "voting": Protocol(
            "the majority of the first judgements of each example, orders in turn; a draw goes to the first",
            _voting,
        ),
        "confidence": Protocol(
            "of the vote: how far confidence misses accuracy, and accuracy on the most confident part",
            _confidence,
        ),
    }


def _strict(
    benchmark: Benchmark, rule: Callable[[ballots.Records], float], judged: Sequence[Judged]
) -> list[Figure]:
    same = ballots.same_number(judged)
    chosen = ballots.in_both_orders(same) if rule is ballots.all_right else [j.records for j in same]
    groups = [benchmark.group(j.example) for j in judged]
    return grouped(groups, map(rule, chosen), macro="macro" if benchmark.macro else None)


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
    return figures + [selective(f"accuracy at {part:.0%} coverage", sure, right, part) for part in COVERAGES]


def _right(records: ballots.Records, judged: Judged) -> bool:
    return ballots.vote(records) == judged.example.winner


def _tokens(records: ballots.Records) -> int:
    return sum(record.tokens or 0 for record in records)


def _needed(judged: Judged, planned: int) -> int:
    """Tokens until the vote is decided."""
    said = [record.preferred for record in judged.records]
    enough = next((i for i in range(1, len(said)) if decided(said[:i], planned)), len(said))
    return _tokens(judged.records[:enough])


def _votes(judged: Sequence[Judged]) -> list[JudgementRecord]:
    return [replace(j.records[0], preferred=ballots.vote(j.records), order="AB", sample=0) for j in judged]
