"""Rows in every benchmark's schema, and judges whose scores are known."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from data_modules.benchmarks import find
from lit_msrl.benchmark import Scorecard, score
from lit_msrl.records import JudgementRecord, Order
from lit_msrl.types import PreferenceExample, Winner
from tests.experiments.made import write_rows

Rule = Callable[[PreferenceExample, Order, int], Winner | None]

VL = {
    "query": "What is this?",
    "image": {"bytes": b"png", "path": None},
    "response": ["A cat.", "A dog!!"],
    "human_ranking": [0, 1],
}
VL_IDS = (
    "RLAIF-V-1",
    "RLHF-V-2",
    "hallucination_pair-3",
    "mathverse_4",
    "mmmu_5",
    "wildvision-battle-6",
    "svit-7",
)
VL_ROWS = [{**VL, "id": name, "query": f"What is {name}?"} for name in VL_IDS]
VL_ROWS[0] = {**VL_ROWS[0], "human_ranking": [1, 0]}
VL_ROWS[5] = {**VL_ROWS[5], "human_ranking": [1, 0], "response": ["A cat", "A dog!!"]}

MM = {"Text": "What?", "Image": "images/a.png", "Output1": "yes", "Output2": "no", "Better": "Output1"}
MM_KINDS = (
    ("x1", "open_generation/correctness_task", "Output1"),
    ("x2", "open_generation/preference_task", "Output2"),
    ("x3", "knowledge", "Output1"),
    ("MathVista1", "reasoning", "Output1"),
    ("emma1", "reasoning", "Output2"),
    ("pairs1", "safety", "Output1"),
    ("rtp1", "safety", "Output2"),
    ("x4", "vqa", "Output1"),
)
MM_ROWS = [{**MM, "ID": name, "Category": kind, "Better": better} for name, kind, better in MM_KINDS]

GENAI_ROWS = [
    {"prompt": f"p{i}", "left_image": f"l{i}.png", "right_image": f"r{i}.png", "vote_type": vote}
    for i, vote in enumerate(["leftvote", "leftvote", "rightvote", "rightvote", "tievote", "bothbad_vote"])
]
VIDEOGEN_ROWS = [
    {
        "path_A": f"a{i}.mp4",
        "path_B": f"b{i}.mp4",
        "prompt": "p",
        **dict.fromkeys(("VQ", "MQ", "TA", "Overall"), label),
    }
    for i, label in enumerate(["A", "A", "B", "B", "same", "same"])
]
JUDGEBENCH_ROWS = [
    {
        "pair_id": f"j{i}",
        "question": f"q{i}",
        "response_A": "a",
        "response_B": "b",
        "label": label,
        "source": source,
    }
    for i, (label, source) in enumerate(
        [
            ("A>B", "mmlu-pro-law"),
            ("B>A", "mmlu-pro-math"),
            ("A>B", "livebench-math"),
            ("B>A", "livebench-reasoning"),
            ("A>B", "livecodebench"),
        ]
    )
]
RM_ROWS = [
    {
        "id": i,
        "prompt": f"p{i}",
        "domain": domain,
        "chosen": ["c0", "c1", "c2"],
        "rejected": ["r0", "r1", "r2"],
    }
    for i, domain in enumerate(["chat", "math", "code", "safety-refuse", "safety-response"])
]
MM_RLHF = {"image": "mcq/1.png", "prompt": "What?", "chosen": "good", "rejected": "bad"}
MM_RLHF_ROWS = [
    {**MM_RLHF, "id": "a"},
    {**MM_RLHF, "id": "a", "rejected": "worse"},
    {**MM_RLHF, "id": "b", "image": "long/2.png"},
    {**MM_RLHF, "id": "c", "image": "safety/2.png"},
    {"id": "d", "video": "video/2.mp4", "prompt": "What?", "chosen": "good", "rejected": "bad"},
]
RB2 = {"prompt": "p", "chosen": ["c"], "rejected": ["r0", "r1", "r2"]}
RB2_ROWS: list[dict[str, Any]] = [
    {**RB2, "id": str(i), "subset": subset}
    for i, subset in enumerate(["Factuality", "Precise IF", "Math", "Safety", "Focus"])
]
RB2_ROWS += [
    {"id": "ref:7", "prompt": "p", "chosen": ["c"], "rejected": ["r0", "r1"], "subset": "Ties"},
    {"id": "tied:7", "prompt": "p", "chosen": ["c0", "c1"], "rejected": ["r0", "r1"], "subset": "Ties"},
]
SHAREGPT = {"prompt": "What happens?", "images": "frames/1", "responses": ["good", "bad"]}
SHAREGPT_ROWS = [
    {**SHAREGPT, "images": f"frames/{i}", "answer": f"Response {winner} is better than the other."}
    for i, winner in enumerate([1, 2, 1])
]

ROWS: dict[str, list[dict[str, Any]]] = {
    "vl_rewardbench": VL_ROWS,
    "multimodal_rewardbench": MM_ROWS,
    "genai_bench": GENAI_ROWS,
    "videogen_rewardbench": VIDEOGEN_ROWS,
    "judgebench": JUDGEBENCH_ROWS,
    "rm_bench": RM_ROWS,
    "mm_rlhf_rewardbench": MM_RLHF_ROWS,
    "rewardbench_2": RB2_ROWS,
    "sharegptvideo": SHAREGPT_ROWS,
}


def examples_of(name: str, rows: Sequence[dict[str, Any]] | None = None) -> list[PreferenceExample]:
    """The examples of rows, without a file."""
    import importlib

    read = importlib.import_module(f"data_modules.benchmarks.{name}").to_example
    found = [read({"id": str(i), **row}) for i, row in enumerate(ROWS[name] if rows is None else rows)]
    return [example for few in found for example in (few if isinstance(few, list) else [few]) if example]


def records(
    examples: Sequence[PreferenceExample],
    rule: Rule,
    samples: int = 1,
    orders: Sequence[Order] = ("AB", "BA"),
) -> list[JudgementRecord]:
    """What a judge with a rule says."""
    return [record(e, o, s, rule(e, o, s)) for e in examples for o in orders for s in range(samples)]


def record(
    example: PreferenceExample, order: Order, sample: int, preferred: Winner | None, **more: Any
) -> JudgementRecord:
    """A record of an example."""
    fields = {"confidence": None, "text": "", "tokens": None, **more}
    return JudgementRecord(
        example.id,
        example.task_type,
        order,
        sample,
        example.winner,
        preferred,
        preferred is not None,
        **fields,
    )


def scored(
    name: str, rule: Rule, samples: int = 1, rows: Sequence[dict[str, Any]] | None = None
) -> Scorecard:
    """The scorecard of a judge on a benchmark's rows."""
    examples = examples_of(name, rows)
    return score(find(name), examples, records(examples, rule, samples))


def oracle(example: PreferenceExample, order: Order, sample: int) -> Winner | None:
    """Always right."""
    return example.winner


def always_a(example: PreferenceExample, order: Order, sample: int) -> Winner | None:
    """Whatever is shown first."""
    return 1 if order == "AB" else 2


def always_wrong(example: PreferenceExample, order: Order, sample: int) -> Winner | None:
    """Never right."""
    return {1: 2, 2: 1, "tie": 1}[example.winner]  # type: ignore[return-value]


def silent(example: PreferenceExample, order: Order, sample: int) -> Winner | None:
    """Nothing that can be read."""
    return None


def at_random(seed: int = 0) -> Rule:
    """A fair coin."""
    coin = random.Random(seed)
    return lambda example, order, sample: coin.choice((1, 2))


__all__ = ["ROWS", "write_rows"]
