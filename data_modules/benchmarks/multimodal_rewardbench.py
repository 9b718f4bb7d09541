"""Multimodal RewardBench (facebookresearch/multimodal_rewardbench): two answers about a picture.

Schema (``all_data.json``): ``ID, Text, Image, Output1, Output2, Better, Category``; ``Text`` of most
sources is filled in by the authors' download script, and ``Image`` is a path, or the embedded picture of a
hub mirror. Label: ``Better`` is ``Output1`` or ``Output2``. The paper counts 5,211 items, the public
release 4,711 (without Hateful Memes). Licence: CC-BY-NC-4.0. Citation: Yasunaga et al., Multimodal
RewardBench, arXiv:2502.14191.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from data_modules.benchmarks.shared import digest
from data_modules.datasets import fields
from data_modules.datasets.fields import Row
from lit_msrl import ballots
from lit_msrl.ballots import Judged, Records
from lit_msrl.benchmark import Benchmark
from lit_msrl.figures import Figure, grouped
from lit_msrl.protocols import Protocol
from lit_msrl.types import PreferenceExample

_LABELS: dict[str, Literal[1, 2]] = {"Output1": 1, "Output2": 2}
_CATEGORIES = {
    "open_generation/correctness_task": "correctness",
    "open_generation/preference_task": "preference",
    **{name: name for name in ("knowledge", "reasoning", "safety", "vqa")},
}
# Where the id begins with the first: the second, else the third.
_SUBGROUPS = {
    "safety": ("pairs", "safety/bias", "safety/toxicity"),
    "reasoning": ("math", "reasoning/math", "reasoning/coding"),
}


def to_example(row: Row) -> PreferenceExample:
    """Read one row.

    Raises:
        ValueError: A field is missing, or the label or the category is unknown.
    """
    name, text = fields.identity(row, "ID"), fields.text(row, "Text")
    candidates = fields.text(row, "Output1"), fields.text(row, "Output2")
    category = fields.choice(row, "Category", _CATEGORIES)
    return PreferenceExample(
        id=f"{name}#{digest(name, text, *candidates)}",
        task_type="image understanding",
        prompt=text,
        winner=fields.choice(row, "Better", _LABELS),
        candidates=candidates,
        media=(fields.media(row, "Image", "image"),),
        source="Multimodal RewardBench",
        licence="CC-BY-NC-4.0",
        facts={"category": category, "group": _subgroup(name, category)},
    )


def _subgroup(name: str, category: str) -> str:
    if category not in _SUBGROUPS:
        return category
    prefix, of_prefix, other = _SUBGROUPS[category]
    return of_prefix if name.lower().startswith(prefix) else other


def _group(example: PreferenceExample) -> str:
    return example.facts["group"]


def _single(rule: Callable[[Records], float], judged: Sequence[Judged]) -> list[Figure]:
    """The order of the file, which mixes the sides already; groups, and categories where they are more."""
    chosen = ballots.in_order(ballots.same_number(judged), lambda example: False)
    hits = [rule(records) for records in chosen]
    whole = grouped([j.example.facts["category"] for j in judged], hits, macro=None)
    parts = grouped([_group(j.example) for j in judged], hits)
    return [*whole, *(figure for figure in parts if figure.name not in {f.name for f in whole})]


BENCHMARK = Benchmark(
    title="Multimodal RewardBench",
    version=1,
    group=_group,
    protocols={
        "official": Protocol(
            "order of the file; overall is over all items (micro); unread: a coin (here its mean, a half)",
            partial(_single, ballots.right_or_coin),
        ),
        "official, strict": Protocol("the same, but unread is wrong", partial(_single, ballots.right)),
    },
    sizes={"paper": 5211, "public release": 4711},
)
