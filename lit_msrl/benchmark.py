"""A benchmark and its protocols; records of judgements in, every published form of the number out.

A benchmark is data (``to_example`` of its module), a grouping, and *protocols*: each the way some paper or
script computes its numbers. Those that hold everywhere are in ``protocols``, a benchmark's own beside its
data.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lit_msrl import ballots, metrics
from lit_msrl.ballots import Judged, NotJudged
from lit_msrl.figures import Estimate, Figure, differences, estimate
from lit_msrl.protocols import Group, Protocol, everywhere
from lit_msrl.records import JudgementRecord
from lit_msrl.types import PreferenceExample


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
    group: Group
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
    for name, protocol in {
        **benchmark.protocols,
        **everywhere(benchmark.group, macro=benchmark.macro),
    }.items():
        try:
            figures = protocol.figures(judged)
        except NotJudged as reason:
            left_out[name] = str(reason)
            continue
        if figures:
            found[name] = protocol.how, figures
    return found, left_out


def _votes(judged: Sequence[Judged]) -> list[JudgementRecord]:
    return [replace(j.records[0], preferred=ballots.vote(j.records), order="AB", sample=0) for j in judged]
