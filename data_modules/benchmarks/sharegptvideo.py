"""ShareGPTVideo, our own held-out split: two answers about a clip.

Papers quote accuracies on "ShareGPTVideo", but the file they tested on is not published. This split is made
from the public preferences (ShareGPTVideo/train_video_and_instruction, ``sft_dpo_17k.jsonl``): every clip
whose id a hash puts into one part of seventeen, about 1,000 rows. **Numbers on it are comparable with each
other, not with those papers.** The training adapter ``sharegptvideo_dpo`` leaves these clips out.

Schema: ``video, chosen, rejected`` and ``prompt``, or, in the conversation form, ``conversations[0].value``
beginning with ``<video>`` and ``chosen, rejected`` as turns. Label: ``chosen`` is better and candidate 1. A
file in the form of UnifiedReward's script (``prompt, images`` (frames), ``responses[2], answer``) is read
whole: it is a test set already.
Licence: Apache-2.0. Citation: Zhang et al., LLaVA-Hound-DPO, arXiv:2404.01258.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from data_modules.benchmarks.shared import digest
from data_modules.datasets import fields
from data_modules.datasets.fields import Row
from data_modules.datasets.sharegptvideo_dpo import clip_id, held_out
from lit_msrl import ballots
from lit_msrl.ballots import Judged, Records
from lit_msrl.benchmark import Benchmark
from lit_msrl.figures import Figure, share
from lit_msrl.protocols import Protocol
from lit_msrl.types import Media, PreferenceExample

_BETTER = re.compile(r"(?:Answer|Response|Video)\s+([12])\s+is\s+better", re.IGNORECASE)


def to_example(row: Row) -> PreferenceExample | None:
    """Read one row; ``None`` when its clip is not held out.

    Raises:
        ValueError: A field is missing or the answer does not say which response is better.
    """
    if "responses" in row:
        return _test_row(row)
    video = fields.text(row, "video")
    if not held_out(clip_id(Media("video", video))):
        return None
    prompt = _prompt(row)
    candidates = _said(row, "chosen"), _said(row, "rejected")
    return _example(f"{video}#{digest(prompt, *candidates)}", prompt, 1, candidates, row, "video")


def _test_row(row: Row) -> PreferenceExample:
    responses, answer = row["responses"], _BETTER.search(fields.text(row, "answer"))
    if (
        not isinstance(responses, list)
        or len(responses) != 2
        or not all(isinstance(r, str) for r in responses)
    ):
        raise ValueError("field 'responses' must be a list of two texts")
    if answer is None:
        raise ValueError(f"field 'answer' is {row['answer']!r}; expected 'Response 1 is better ...' or 2")
    prompt, pair = fields.text(row, "prompt"), (responses[0], responses[1])
    name = digest(prompt, *pair, str(row.get("images")))
    return _example(name, prompt, 1 if answer[1] == "1" else 2, pair, row, "images")


def _example(
    name: str, prompt: str, winner: Literal[1, 2], candidates: tuple[str, str], row: Row, column: str
) -> PreferenceExample:
    return PreferenceExample(
        id=name,
        task_type="video understanding",
        prompt=prompt,
        winner=winner,
        candidates=candidates,
        media=(fields.media(row, column, "video"),),
        source="ShareGPTVideo (own split)",
        licence="Apache-2.0",
    )


def _prompt(row: Row) -> str:
    if "conversations" not in row:
        return fields.text(row, "prompt")
    turns: Any = row["conversations"]
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], dict):
        raise ValueError("field 'conversations' must be a list of turns, with at least one")
    return fields.text(turns[0], "value").removeprefix("<video>").strip()


def _said(row: Row, name: str) -> str:
    return fields.text(row[name], "value") if isinstance(row.get(name), dict) else fields.text(row, name)


def _single(choose: Callable[[Sequence[Judged]], list[Records]], judged: Sequence[Judged]) -> list[Figure]:
    return [share("overall", map(ballots.right, choose(ballots.same_number(judged))))]


def _as_given(judged: Sequence[Judged]) -> list[Records]:
    return ballots.in_order(judged, lambda example: False)


BENCHMARK = Benchmark(
    title="ShareGPTVideo (own split by video id)",
    version=1,
    group=lambda example: "all",
    protocols={
        "single order": Protocol(
            "one judgement in random order; unread is wrong", partial(_single, ballots.in_random_order)
        ),
        "UnifiedReward": Protocol(
            "the order of the file (in which chosen is first); unread is wrong", partial(_single, _as_given)
        ),
    },
    macro=False,
    split="train",
)
