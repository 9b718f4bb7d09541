"""MM-RLHF-RewardBench (yifanzhang114/MM-RLHF-RewardBench): two answers about a picture or a clip.

Schema: ``id, image`` or ``video, prompt, chosen, rejected``. Label: ``chosen`` is better and candidate 1.
Rows with the same id are pairs of one item. The category is the first of mcq, long, short, safety and video
that the path of the medium contains (42, 37, 34, 32 and 25 of 170 pairs).
Licence: see the dataset. Citation: Zhang et al., MM-RLHF, arXiv:2502.10391.
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

_CATEGORIES = ("mcq", "long", "short", "safety", "video")


def to_example(row: Row) -> PreferenceExample:
    """Read one row.

    Raises:
        ValueError: A field is missing, or the path of the medium names no category.
    """
    kind: Literal["image", "video"] = "video" if fields.has(row, "video") else "image"
    name, prompt = fields.identity(row), fields.text(row, "prompt")
    candidates = fields.text(row, "chosen"), fields.text(row, "rejected")
    return PreferenceExample(
        id=f"{name}#{digest(prompt, *candidates)}",
        task_type="video understanding" if kind == "video" else "image understanding",
        prompt=prompt,
        winner=1,
        candidates=candidates,
        media=(fields.media(row, kind, kind),),
        source="MM-RLHF-RewardBench",
        facts={"item": name, "category": _category(row, kind)},
    )


def _category(row: Row, kind: str) -> str:
    path = row[kind].get("path") if isinstance(row[kind], dict) else row[kind]
    found = next((name for name in _CATEGORIES if isinstance(path, str) and name in path), None)
    if found is None:
        raise ValueError(f"field {kind!r} is {path!r}; its path must name one of {', '.join(_CATEGORIES)}")
    return found


def _group(example: PreferenceExample) -> str:
    return example.facts["category"]


def _pairs_and_items(
    choose: Callable[[Sequence[Judged]], list[Records]], judged: Sequence[Judged]
) -> list[Figure]:
    """Acc, the share of pairs that are right, and Acc+, the share of items all of whose pairs are."""
    hits = [ballots.right(records) for records in choose(ballots.same_number(judged))]
    groups = [_group(j.example) for j in judged]
    lowest: dict[str, float] = {}
    for j, hit in zip(judged, hits, strict=True):
        lowest[j.item] = min(hit, lowest.get(j.item, 1.0))
    seen: set[str] = set()
    first = [not (j.item in seen or seen.add(j.item)) for j in judged]  # one pair stands for its item
    whole = [float(lowest[j.item] == 1.0 and flag) for j, flag in zip(judged, first, strict=True)]
    plus = grouped(groups, whole, first, overall="Acc+", macro=None)
    named = [f if f.name == "Acc+" else _renamed(f, f"Acc+ {f.name}") for f in plus]
    return grouped(groups, hits, overall="Acc", macro=None) + named


def _renamed(figure: Figure, name: str) -> Figure:
    return Figure(name, figure.columns, figure.value, figure.counted)


def _chosen_first(judged: Sequence[Judged]) -> list[Records]:
    return ballots.in_order(judged, lambda example: example.winner == 2)


BENCHMARK = Benchmark(
    title="MM-RLHF-RewardBench",
    version=1,
    group=_group,
    protocols={
        "official": Protocol(
            "random order; Acc over pairs, Acc+ over items with all their pairs right; unread is wrong",
            partial(_pairs_and_items, ballots.in_random_order),
        ),
        "official, both orders": Protocol(
            "the same from both orders; for Acc+ a pair has to be right in both",
            partial(_pairs_and_items, ballots.in_both_orders),
        ),
        "R1-Reward": Protocol(
            "as official, but the better answer is always shown first",
            partial(_pairs_and_items, _chosen_first),
        ),
    },
    sizes={"published": 170},
)
