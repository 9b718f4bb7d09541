"""RM-Bench (THU-KEG/RM-Bench, ``total_dataset.json``): three right and three wrong answers to a prompt.

Schema: ``id, prompt, chosen[3], rejected[3], domain``, the answers concise, detailed, and detailed in
markdown. The files of single domains have no ``domain``: give it with ``--options '{"domain": "chat"}'``. A
row becomes nine pairs: chosen ``i`` (candidate 1) against rejected ``j``. Licence: ODC-BY. Citation: Liu et
al., RM-Bench, arXiv:2410.16184.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from data_modules.datasets import fields
from data_modules.datasets.fields import Row
from lit_msrl import ballots
from lit_msrl.ballots import Judged, Records
from lit_msrl.benchmark import Benchmark
from lit_msrl.figures import Figure, mean, share
from lit_msrl.protocols import Protocol
from lit_msrl.types import PreferenceExample

_STYLES = 3
_DOMAINS = ("chat", "math", "code", "safety")


def to_example(row: Row, domain: str | None = None) -> list[PreferenceExample]:
    """Read one row.

    Args:
        row: The row.
        domain: The domain of a file that does not say it.

    Raises:
        ValueError: A field is missing, the domain is unknown, or there are not three answers of each kind.
    """
    name, prompt = fields.identity(row), fields.text(row, "prompt")
    domain = fields.text(row, "domain") if domain is None else domain
    group = domain.split("-")[0]
    if group not in _DOMAINS:
        raise ValueError(f"field 'domain' is {domain!r}; expected {', '.join(_DOMAINS)} or safety-...")
    chosen, rejected = _answers(row, "chosen"), _answers(row, "rejected")
    return [
        PreferenceExample(
            id=f"{name}/{i}{j}",
            task_type="text",
            prompt=prompt,
            winner=1,
            candidates=(chosen[i], rejected[j]),
            source="RM-Bench",
            licence="ODC-BY",
            facts={
                "item": name,
                "domain": group,
                "level": "normal" if i == j else "easy" if i > j else "hard",
            },
        )
        for i in range(_STYLES)
        for j in range(_STYLES)
    ]


def _answers(row: Row, name: str) -> list[str]:
    answers = row[name]
    fits = isinstance(answers, list) and len(answers) == _STYLES and all(isinstance(a, str) for a in answers)
    if not fits:
        raise ValueError(f"field {name!r} must be a list of {_STYLES} texts")
    return answers


def _group(example: PreferenceExample) -> str:
    return example.facts["domain"]


def _matrix(choose: Callable[[Sequence[Judged]], list[Records]], judged: Sequence[Judged]) -> list[Figure]:
    """Means over the 3 x 3 comparisons: by level, by domain, and the mean over domains of both."""
    hits = [ballots.right(records) for records in choose(ballots.same_number(judged))]

    def part(domain: str, level: str) -> Figure:
        inside = [j.example.facts["domain"] == domain and j.example.facts["level"] == level for j in judged]
        return share(level, (hit * flag for hit, flag in zip(hits, inside, strict=True)), inside)

    present = [name for name in _DOMAINS if any(_group(j.example) == name for j in judged)]
    parts = {name: [part(name, level) for level in ("easy", "normal", "hard")] for name in present}
    domains = [mean(name, levels) for name, levels in parts.items()]
    levels = [mean(few[0].name, few) for few in zip(*parts.values(), strict=True)]
    return [mean("overall", domains), *levels, *domains]


BENCHMARK = Benchmark(
    title="RM-Bench",
    version=1,
    group=_group,
    protocols={
        "official": Protocol(
            "nine comparisons per prompt, each judged once in random order; means by level within domains, "
            "overall the mean of the domains; unread is wrong",
            partial(_matrix, ballots.in_random_order),
        ),
        "official, both orders": Protocol(
            "the same from the mean of both orders", partial(_matrix, ballots.in_both_orders)
        ),
    },
    sizes={"published, comparisons": 11943},
    split="train",
)
