"""GenAI-Bench (TIGER-Lab/GenAI-Bench): two pictures or clips made for a prompt, and how people voted.

Not to be confused with BaiqiL/GenAI-Bench, which has ratings. Schema: ``prompt, left_image, right_image,
vote_type`` (configuration ``image_generation``) or ``prompt, left_video, right_video, vote_type``
(``video_generation``); as UnifiedReward ships the clips: ``id, prompt, video_left, video_right, vote_type``.
Label: ``leftvote, rightvote, tievote`` or ``bothbad_vote``; left is candidate 1, the last two are ties.
Splits: ``test`` (used by UnifiedReward) and ``test_v1`` (used by the authors). Licence: CC-BY-4.0.
Citation: Jiang et al., GenAI Arena, arXiv:2406.04485.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from data_modules.benchmarks.shared import digest, orders_as_ties, three_way
from data_modules.datasets import fields
from data_modules.datasets.fields import Row
from lit_msrl import ballots
from lit_msrl.ballots import Judged
from lit_msrl.benchmark import Benchmark
from lit_msrl.figures import Figure, share
from lit_msrl.protocols import Protocol
from lit_msrl.records import JudgementRecord
from lit_msrl.types import PreferenceExample, TaskType, Winner

_VOTES: dict[str, Winner] = {"leftvote": 1, "rightvote": 2, "tievote": "tie", "bothbad_vote": "tie"}
_COLUMNS: tuple[tuple[str, str, Literal["image", "video"]], ...] = (
    ("left_image", "right_image", "image"),
    ("left_video", "right_video", "video"),
    ("video_left", "video_right", "video"),
)
_TASKS: dict[str, TaskType] = {"image": "image generation", "video": "video generation"}
_OTHER_TIE = {"tievote": "[[A=B=Bad]]", "bothbad_vote": "[[A=B=Good]]"}


def to_example(row: Row) -> PreferenceExample:
    """Read one row.

    Raises:
        ValueError: A field is missing or the vote is unknown.
    """
    columns = next((names for names in _COLUMNS if names[0] in row), None)
    if columns is None:
        raise ValueError(
            "fields 'left_image' and 'right_image', or 'left_video' and 'right_video', are missing"
        )
    left, right, kind = columns
    media = fields.media(row, left, kind), fields.media(row, right, kind)
    prompt = fields.text(row, "prompt")
    own = f"{fields.identity(row)}#" if left == "video_left" else ""  # the hub's rows have no id of their own
    return PreferenceExample(
        id=own + digest(prompt, *media),
        task_type=_TASKS[kind],
        prompt=prompt,
        winner=fields.choice(row, "vote_type", _VOTES),
        media=media,
        source="GenAI-Bench",
        licence="CC-BY-4.0",
        facts={"vote": fields.choice(row, "vote_type", {name: name for name in _VOTES})},
    )


def _group(example: PreferenceExample) -> str:
    return "ties" if example.winner == "tie" else "without ties"


def _four_way(judged: Sequence[Judged]) -> list[Figure]:
    """The authors' accuracy: which kind of tie it is counts, where the judge says so."""
    chosen = ballots.in_order(ballots.same_number(judged), lambda example: False)
    votes = [j.example.facts["vote"] for j in judged]
    hits = [sum(_agrees(r, vote) for r in rs) / len(rs) for rs, vote in zip(chosen, votes, strict=True)]
    figures = [share("overall", hits)]
    for name in [name for name in _VOTES if name in votes]:
        inside = [vote == name for vote in votes]
        figures.append(share(name, (hit * flag for hit, flag in zip(hits, inside, strict=True)), inside))
    return figures


def _agrees(record: JudgementRecord, vote: str) -> bool:
    return record.correct and _OTHER_TIE.get(vote, "[[]]") not in record.text


def _unified(judged: Sequence[Judged]) -> list[Figure]:
    return three_way(judged, ballots.in_random_order(ballots.same_number(judged)), unread="tie")


def _unified_think(judged: Sequence[Judged]) -> list[Figure]:
    chosen = ballots.in_random_order(ballots.same_number(judged))
    return three_way(judged, chosen, unread=None)[1:]


BENCHMARK = Benchmark(
    title="GenAI-Bench",
    version=1,
    group=_group,
    protocols={
        "official": Protocol(
            "four classes (left, right, tie, both bad; a bare tie fits both); left first; unread is wrong",
            _four_way,
        ),
        "UnifiedReward": Protocol(
            "three classes; random order; what cannot be read counts as a tie ('tau' and 'diff')", _unified
        ),
        "UnifiedReward-Think": Protocol(
            "ties left out; random order; unread is wrong ('diff')", _unified_think
        ),
        "orders as ties": Protocol(
            "three classes for a judge that cannot say tie: it is one when its two orders balance",
            orders_as_ties,
        ),
    },
    macro=False,
    sizes={
        "image test": 3192,
        "image test_v1": 1735,
        "video test_v1": 1069,
        "video, UnifiedReward's list": 1889,
    },
    subset="image_generation",
)
