"""JudgeBench (ScalerLab/JudgeBench, splits ``gpt`` 350 and ``claude`` 270): two answers, one of them wrong.

For schema, label, licence and citation see ``data_modules.datasets.judgebench``, whose rows these are.
Categories come from the column ``source``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from data_modules.datasets import fields, judgebench
from data_modules.datasets.fields import Row
from lit_msrl import ballots
from lit_msrl.ballots import Judged
from lit_msrl.benchmark import Benchmark
from lit_msrl.figures import Figure, grouped
from lit_msrl.protocols import Protocol
from lit_msrl.types import PreferenceExample

_CATEGORIES = {"livebench-reasoning": "reasoning", "livebench-math": "math", "livecodebench": "coding"}


def to_example(row: Row) -> PreferenceExample:
    """Read one row.

    Raises:
        ValueError: A field is missing, or the label or the source is unknown.
    """
    source = fields.text(row, "source")
    category = "knowledge" if source.startswith("mmlu-pro") else fields.choice(row, "source", _CATEGORIES)
    return replace(judgebench.to_example(row), facts={"category": category})


def _group(example: PreferenceExample) -> str:
    return example.facts["category"]


def _two_orders(judged: Sequence[Judged]) -> list[Figure]:
    """A count of +1 for each right judgement and -1 for each wrong one; right when it is above zero."""
    chosen = ballots.in_both_orders(ballots.same_number(judged))
    counts = [sum(r.correct - (r.decided and not r.correct) for r in records) for records in chosen]
    return grouped([_group(j.example) for j in judged], (float(count > 0) for count in counts))


BENCHMARK = Benchmark(
    title="JudgeBench",
    version=1,
    group=_group,
    protocols={
        "official": Protocol(
            "both orders; right when more judgements are right than wrong; ties and unread count for neither",
            _two_orders,
        )
    },
    sizes={"split gpt": 350, "split claude": 270},
    split="gpt",
)
