"""VL-RewardBench (MMInstruction/VL-RewardBench, split ``test``): two answers about a picture.

Schema: ``id, query, response[2], image, human_ranking[2]`` (rank of each response, 0 is best); or, as
R1-Reward ships it, ``id, prompt, chosen, rejected, image``, where the chosen answer is candidate 1. An id
occurs up to twice, so the official key (id, query, sorted responses) makes the id here:
``wildvision-7#1f2e3d4c``. Licence: MIT, with the note "research use only". Citation: Li et al.,
VL-RewardBench, arXiv:2411.17451.

Four maps from ids to the groups General, Hallucination and Reasoning are in use. The overall accuracy does
not depend on them, the macro average does:

=============  ==============================================  ========================================
map            what differs                                    general / hallucination / reasoning
=============  ==============================================  ========================================
official       POVID, RLAIF-V and RLHF-V are hallucination     183 / 749 / 318
UnifiedReward  POVID (``hallucination_pair-...``) is general   631 / 301 / 318
R1-Reward      RLAIF-V and RLHF-V are general                  484 / 448 / 318
VLMEvalKit     the ``category`` column of its own table        where the data has that column
=============  ==============================================  ========================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

from data_modules.benchmarks.shared import digest
from data_modules.datasets import fields
from data_modules.datasets.fields import Row
from lit_msrl import ballots
from lit_msrl.ballots import Judged, NotJudged
from lit_msrl.benchmark import Benchmark
from lit_msrl.figures import Figure, grouped
from lit_msrl.protocols import Protocol
from lit_msrl.types import PreferenceExample

_OFFICIAL = {
    **dict.fromkeys(("RLAIF", "RLHF", "hallucination"), "hallucination"),
    **dict.fromkeys(("mathverse", "mmmu"), "reasoning"),
}
_UNIFIED = {key: group for key, group in _OFFICIAL.items() if key != "hallucination"}
_R1 = {key: group for key, group in _OFFICIAL.items() if not key.startswith("RL")}
_RANKINGS: dict[tuple[int, ...], Literal[1, 2]] = {(0, 1): 1, (1, 0): 2}


def to_example(row: Row) -> PreferenceExample:
    """Read one row.

    Raises:
        ValueError: A field is missing or the ranking is not one of two responses.
    """
    name = fields.identity(row)
    query = fields.text(row, "query" if "query" in row else "prompt")
    first, second, winner = _responses(row)
    category = {"category": str(row["category"])} if fields.has(row, "category") else {}
    return PreferenceExample(
        id=f"{name}#{digest(name, query, *sorted((first, second)))}",
        task_type="image understanding",
        prompt=query,
        winner=winner,
        candidates=(first, second),
        media=(fields.media(row, "image", "image"),),
        source="VL-RewardBench",
        licence="MIT, research use only",
        facts={"prefix": re.split("[-_]", name, maxsplit=1)[0], **category},
    )


def _responses(row: Row) -> tuple[str, str, Literal[1, 2]]:
    if "chosen" in row:
        return fields.text(row, "chosen"), fields.text(row, "rejected"), 1
    responses, ranking = row["response"], row["human_ranking"]
    if (
        not isinstance(responses, Sequence)
        or len(responses) != 2
        or not all(isinstance(r, str) for r in responses)
    ):
        raise ValueError("field 'response' must be a list of two texts")
    if not isinstance(ranking, Sequence) or tuple(ranking) not in _RANKINGS:
        raise ValueError(f"field 'human_ranking' is {ranking!r}; expected [0, 1] or [1, 0]")
    return responses[0], responses[1], _RANKINGS[tuple(ranking)]


def _group(groups: Mapping[str, str], example: PreferenceExample) -> str:
    return groups.get(example.facts["prefix"], "general")


def _category(example: PreferenceExample) -> str:
    if "category" not in example.facts:
        raise NotJudged("the data has no column 'category'")
    return example.facts["category"]


def _official(strict: bool, judged: Sequence[Judged]) -> list[Figure]:
    """Groups and macro over items with a majority; ``strict`` keeps the others, as wrong."""
    chosen = ballots.in_random_order(ballots.same_number(judged))
    verdicts = [ballots.agreement(records) for records in chosen]
    counted = [float(strict or verdict is not None) for verdict in verdicts]
    groups = [_group(_OFFICIAL, j.example) for j in judged]
    return grouped(groups, (float(bool(verdict)) for verdict in verdicts), counted)


def _single(
    group: Callable[[PreferenceExample], str],
    order: Callable[[PreferenceExample], bool] | None,
    rule: Callable[[ballots.Records], float],
    judged: Sequence[Judged],
) -> list[Figure]:
    """One judgement of each item (the mean over samples), in the order a script shows; ``None`` is random."""
    same = ballots.same_number(judged)
    chosen = ballots.in_random_order(same) if order is None else ballots.in_order(same, order)
    return grouped([group(j.example) for j in judged], map(rule, chosen))


def _parity(example: PreferenceExample) -> bool:
    return sum(map(len, example.candidates or ())) % 2 == 1


def _chosen_first(example: PreferenceExample) -> bool:
    return example.winner == 2


BENCHMARK = Benchmark(
    title="VL-RewardBench",
    version=1,
    group=partial(_group, _OFFICIAL),
    protocols={
        "official": Protocol(
            "random order in each sample; right when more than half of the samples agree; items without "
            "such a majority are dropped",
            partial(_official, False),
        ),
        "official, strict": Protocol(
            "the same, but an item without a majority is wrong", partial(_official, True)
        ),
        "lmms-eval": Protocol(
            "official groups; swapped when the responses' lengths add up to an odd number; unread: a coin",
            partial(_single, partial(_group, _OFFICIAL), _parity, ballots.right_or_coin),
        ),
        "UnifiedReward": Protocol(
            "POVID counted as general; random order; unread is wrong",
            partial(_single, partial(_group, _UNIFIED), None, ballots.right),
        ),
        "R1-Reward": Protocol(
            "RLAIF-V and RLHF-V counted as general; the better answer is always shown first; unread is wrong",
            partial(_single, partial(_group, _R1), _chosen_first, ballots.right),
        ),
        "VLMEvalKit": Protocol(
            "groups of the column 'category'; order as in lmms-eval; unread is wrong",
            partial(_single, _category, _parity, ballots.right),
        ),
    },
    sizes={"published": 1250, "a variant of some scripts": 1247},
)
