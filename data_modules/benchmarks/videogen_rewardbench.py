"""VideoGen-RewardBench (KwaiVGI): pairs of clips made for a prompt, with labels on four dimensions.

For schema, labels, licence and citation see ``data_modules.datasets.videogen_rewardbench``, whose rows
these are. Rows have no id; the paths and the prompt make one. A judge that gives one verdict per pair is
read against each of them; ``--options '{"label": "VQ"}'`` chooses which is the example's winner (and has to
be given where the data has no ``Overall``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from data_modules.benchmarks.shared import digest, orders_as_ties, three_way
from data_modules.datasets import fields, videogen_rewardbench
from data_modules.datasets.fields import Row
from data_modules.datasets.videogen_rewardbench import Dimension
from lit_msrl import ballots
from lit_msrl.ballots import Judged, Records
from lit_msrl.benchmark import Benchmark
from lit_msrl.figures import Figure, calibrated_ties, mean, share
from lit_msrl.protocols import Protocol
from lit_msrl.types import PreferenceExample

_DIMENSIONS: tuple[Dimension, ...] = ("Overall", "VQ", "MQ", "TA")
_SIGNS = {"A": 1, "B": -1, "same": 0}


def to_example(row: Row, label: Dimension = "Overall") -> PreferenceExample:
    """Read one row.

    Args:
        row: The row.
        label: The dimension that decides.

    Raises:
        ValueError: A field is missing or a label is unknown.
    """
    example = videogen_rewardbench.to_example(row, label)
    present = [name for name in _DIMENSIONS if fields.has(row, name)]
    labels = {name: str(fields.choice(row, name, _SIGNS)) for name in present}
    return replace(example, id=digest(*example.media, example.prompt), facts=labels)


def _group(example: PreferenceExample) -> str:
    return "ties" if example.winner == "tie" else "without ties"


def _margins(judged: Sequence[Judged], choose: Callable[[Sequence[Judged]], list[Records]]) -> list[Figure]:
    """Both accuracies of the authors, on every dimension that all examples have, and their means."""
    margins = [ballots.margin(records) for records in choose(ballots.same_number(judged))]
    names = [name for name in _DIMENSIONS if all(name in j.example.facts for j in judged)]
    without, tied = [], []
    for name in names:
        better = [int(j.example.facts[name]) for j in judged]
        hits = [float(h * m > 0) for h, m in zip(better, margins, strict=True)]
        without.append(share(f"{name} without ties", hits, map(abs, better)))
        tied.append(calibrated_ties(f"{name} with ties", better, margins))
    figures = [figure for pair in zip(without, tied, strict=True) for figure in pair]
    if len(names) < 2:
        return figures
    return [*figures, mean("mean without ties", without), mean("mean with ties", tied)]


def _official(judged: Sequence[Judged]) -> list[Figure]:
    return _margins(judged, lambda same: [j.records for j in same])


def _official_in_order(judged: Sequence[Judged]) -> list[Figure]:
    return _margins(judged, lambda same: ballots.in_order(same, lambda example: False))


def _unified(judged: Sequence[Judged]) -> list[Figure]:
    return three_way(judged, ballots.in_random_order(ballots.same_number(judged)), unread="tie")


def _unified_think(judged: Sequence[Judged]) -> list[Figure]:
    chosen = ballots.in_order(ballots.same_number(judged), lambda example: False)
    return three_way(judged, chosen, unread=None)[1:]


BENCHMARK = Benchmark(
    title="VideoGen-RewardBench",
    version=1,
    group=_group,
    protocols={
        "official": Protocol(
            "margin = mean verdict of all judgements; without ties: its sign; with ties: a tie below "
            "the best threshold (equal margins together, so not as in the published loop)",
            _official,
        ),
        "official, file order": Protocol("the same from judgements that show A first", _official_in_order),
        "UnifiedReward": Protocol(
            "three classes; random order; what cannot be read counts as a tie ('tau' and 'diff')", _unified
        ),
        "UnifiedReward-Think": Protocol("ties left out; A shown first; unread is wrong", _unified_think),
        "orders as ties": Protocol(
            "three classes for a judge that cannot say tie: it is one when its two orders balance",
            orders_as_ties,
        ),
    },
    macro=False,
    sizes={"published, about": 26500},
    split="eval",
)
