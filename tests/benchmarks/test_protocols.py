"""Scores worked out by hand, protocol by protocol."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from data_modules.benchmarks import find, load
from data_modules.datasets.sharegptvideo_dpo import held_out
from lit_msrl.ballots import coin
from lit_msrl.benchmark import score
from lit_msrl.figures import calibrated_ties
from lit_msrl.records import Order
from lit_msrl.types import PreferenceExample, Winner
from tests.benchmarks.made import ROWS, always_a, examples_of, oracle, record, records, scored, write_rows
from tests.data_modules.made import REALDATA, needs_realdata


def by_name(said: dict[str, Any]) -> Callable[[PreferenceExample, Order, int], Winner | None]:
    """A judge by the start of the example's id: ``right``, ``wrong``, ``None``, or one of them per sample."""

    def rule(example: PreferenceExample, order: Order, sample: int) -> Winner | None:
        what = next((v for k, v in said.items() if example.id.startswith(k)), "right")
        what = what[sample] if isinstance(what, list) else what
        if what is None:
            return None
        return example.winner if what == "right" else 3 - example.winner  # type: ignore[operator, return-value]

    return rule


# --------------------------------------------------------------------------------------- VL-RewardBench


def test_vl_rewardbench_reads_rankings_and_keys():
    examples = examples_of("vl_rewardbench")
    assert [e.winner for e in examples] == [2, 1, 1, 1, 1, 2, 1]
    same = examples_of(
        "vl_rewardbench", [{**ROWS["vl_rewardbench"][1], "response": r} for r in (["a", "b"], ["b", "a"])]
    )
    assert same[0].id == same[1].id, "the key sorts the responses"
    assert same[0].id.startswith("RLHF-V-2#")


def test_vl_rewardbench_group_maps():
    wrong = {"RLAIF": "wrong", "hallucination": "wrong"}
    card = scored("vl_rewardbench", by_name(wrong))
    # items: RLAIF, RLHF, POVID, mathverse, mmmu, wildvision, svit; RLAIF and POVID are wrong
    expected = {
        "official": {"hallucination": 1 / 3, "reasoning": 1.0, "general": 1.0},
        "UnifiedReward": {"hallucination": 1 / 2, "reasoning": 1.0, "general": 2 / 3},
        "R1-Reward": {"hallucination": 0.0, "reasoning": 1.0, "general": 3 / 4},
    }
    for protocol, groups in expected.items():
        assert card[protocol, "overall"].value == pytest.approx(5 / 7)
        assert card[protocol, "macro"].value == pytest.approx(sum(groups.values()) / 3)
        for group, value in groups.items():
            assert card[protocol, group].value == pytest.approx(value), (protocol, group)
    assert card.left_out == {"VLMEvalKit": "the data has no column 'category'"}


def test_vl_rewardbench_takes_the_category_where_there_is_one():
    rows = [{**row, "category": "x" if i else "y"} for i, row in enumerate(ROWS["vl_rewardbench"])]
    card = scored("vl_rewardbench", by_name({"RLAIF": "wrong"}), rows=rows)
    assert (card["VLMEvalKit", "x"].value, card["VLMEvalKit", "y"].value) == (1.0, 0.0)
    assert card["VLMEvalKit", "macro"].value == 0.5


def test_vl_rewardbench_official_drops_what_has_no_majority_and_strict_does_not():
    said = {
        "RLAIF": ["right", "right", "wrong"],  # agree
        "RLHF": ["right", None, None],  # neither: 1 of 3
        "hallucination": ["wrong", None, "wrong"],  # reject
        "mathverse": [None, None, None],
    }
    card = scored("vl_rewardbench", by_name(said), samples=3)
    assert card["official", "hallucination"].value == pytest.approx(1 / 2)
    assert card["official", "hallucination"].n == 2
    assert card["official", "reasoning"].value == 1.0
    assert card["official", "overall"].value == pytest.approx(4 / 5)  # of 7 two are dropped
    assert card["official", "macro"].value == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert card["official, strict", "hallucination"].value == pytest.approx(1 / 3)
    assert card["official, strict", "overall"].value == pytest.approx(4 / 7)


def test_vl_rewardbench_shows_the_better_answer_first_in_r1_rewards_script():
    card = scored("vl_rewardbench", always_a)
    assert card["R1-Reward", "overall"].value == 1.0, "a judge that only ever says A is perfect there"
    assert card["strict", "overall"].value == 0.5
    tossed = [coin(e.id, 0) == (e.winner == 2) for e in examples_of("vl_rewardbench")]
    assert (
        card["UnifiedReward", "overall"].value
        == card["official", "overall"].value
        == pytest.approx(np.mean(tossed))
    )
    # "A cat." and "A dog!!" have 13 letters, odd, so candidate 2 is A; "A cat" and "A dog!!" have 12
    assert card["lmms-eval", "overall"].value == pytest.approx(1 / 7)  # only RLAIF, where 2 is better


def test_lmms_eval_tosses_a_coin_for_what_it_cannot_read():
    card = scored("vl_rewardbench", by_name({"mmmu": None}))
    assert card["lmms-eval", "reasoning"].value == pytest.approx(3 / 4)
    assert card["UnifiedReward", "reasoning"].value == pytest.approx(1 / 2)


# --------------------------------------------------------------------------------------- the others


def test_multimodal_rewardbench_is_micro_and_tosses_a_coin():
    wrong = {"MathVista1": "wrong", "pairs1": None}
    card = scored("multimodal_rewardbench", by_name(wrong))
    assert card["official", "overall"].value == pytest.approx(6.5 / 8)
    assert card["official", "reasoning"].value == pytest.approx(1 / 2)
    assert card["official", "reasoning/math"].value == 0.0
    assert card["official", "reasoning/coding"].value == 1.0
    assert card["official", "safety"].value == pytest.approx(3 / 4)
    assert card["official", "safety/bias"].value == pytest.approx(1 / 2)
    assert card["official, strict", "overall"].value == pytest.approx(6 / 8)
    assert card["official, strict", "safety/bias"].value == 0.0


def test_multimodal_rewardbench_shows_the_order_of_the_file():
    assert scored("multimodal_rewardbench", always_a)["official", "overall"].value == pytest.approx(5 / 8)


def test_genai_bench_with_and_without_ties():
    # left, left, right, right, tie, both bad; this judge says left to everything, in both orders
    card = scored("genai_bench", lambda e, o, s: 1)
    assert card["official", "overall"].value == pytest.approx(2 / 6)
    assert card["UnifiedReward", "with ties"].value == pytest.approx(2 / 6)
    assert card["UnifiedReward", "without ties"].value == pytest.approx(2 / 4)
    assert card["UnifiedReward-Think", "without ties"].value == pytest.approx(2 / 4)


def test_genai_bench_reads_silence_as_a_tie_where_the_script_does():
    card = scored("genai_bench", lambda e, o, s: None)
    assert card["UnifiedReward", "with ties"].value == pytest.approx(2 / 6)
    assert card["official", "overall"].value == 0.0
    assert card["orders as ties", "with ties"].value == pytest.approx(2 / 6)


def test_genai_bench_balanced_orders_are_a_tie():
    card = scored("genai_bench", always_a)
    assert card["orders as ties", "with ties"].value == pytest.approx(2 / 6)
    assert card["orders as ties", "without ties"].value == 0.0


@pytest.mark.parametrize(
    ("text", "expected"), [("[[A=B=Good]]", 1 / 6), ("[[A=B=Bad]]", 1 / 6), ("[[A=B]]", 2 / 6)]
)
def test_genai_bench_kinds_of_tie(text, expected):
    examples = examples_of("genai_bench")
    made = [record(e, o, 0, "tie", text=f"So {text}") for e in examples for o in ("AB", "BA")]
    assert score(find("genai_bench"), examples, made)["official", "overall"].value == pytest.approx(expected)


@needs_realdata
@pytest.mark.parametrize("file", ["image_generation_random_v1_1735", "video_generation_gpt4o_v1_first200"])
def test_genai_bench_scores_the_authors_results_as_they_do(file, tmp_path):
    path = REALDATA / "genai_bench" / f"results_{file}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    data = [
        {
            "prompt": f"{r['idx']} {r['prompt']}",
            "left_image": "l",
            "right_image": "r",
            "vote_type": r["human_vote"],
        }
        for r in rows
    ]
    examples = load("genai_bench", write_rows(tmp_path / "data.jsonl", *data))
    said: dict[str, Winner] = {"[[A>B]]": 1, "[[B>A]]": 2, "[[A=B=Good]]": "tie", "[[A=B=Bad]]": "tie"}
    votes = {d["prompt"]: r["model_vote"] for d, r in zip(data, rows, strict=True)}
    made = [record(e, "AB", 0, said[votes[e.prompt]], text=votes[e.prompt]) for e in examples]
    card = score(find("genai_bench"), examples, made)
    assert card["official", "overall"].value == pytest.approx(np.mean([r["correct"] for r in rows]))


def published_loop(better: Sequence[int], margins: Sequence[float]) -> float:
    """What datasets' scripts do: raise the threshold row by row, take the maximum after every row."""
    order = np.argsort(np.abs(margins), kind="stable")
    h, m = np.asarray(better)[order], np.asarray(margins)[order]
    right, tied, best = int((h * m > 0).sum()), 0, 0.0
    for label, margin in zip(h, m, strict=True):
        right, tied = right - (label * margin > 0), tied + (label == 0)
        best = max(best, (right + tied) / len(h))
    return best


def test_videogen_ties_agree_with_the_published_loop_where_margins_are_distinct():
    draw = np.random.default_rng(0)
    for _ in range(20):
        better, margins = draw.integers(-1, 2, 40), draw.normal(size=40)
        figure = calibrated_ties("x", better.tolist(), margins.tolist())
        none = float((better * margins > 0).mean())
        assert figure.value(figure.columns.sum(0)) == pytest.approx(
            max(published_loop(better.tolist(), margins.tolist()), none)
        )


def test_videogen_published_loop_errs_where_scores_are_discrete_and_ours_does_not():
    # A pairwise judge: every margin is 1 or -1. Two ties, three right, one wrong.
    better, margins = [0, 0, 1, 1, -1, 1], [1.0, 1.0, 1.0, 1.0, -1.0, -1.0]
    figure = calibrated_ties("x", better, margins)
    truth = max(3 / 6, 2 / 6)  # no ties called, or all: nothing lies between equal margins
    assert figure.value(figure.columns.sum(0)) == pytest.approx(truth)
    assert published_loop(better, margins) == pytest.approx(5 / 6), (
        "ties first: two ties called, three still right"
    )
    last = [better[i] for i in (2, 3, 4, 5, 0, 1)], [margins[i] for i in (2, 3, 4, 5, 0, 1)]
    assert published_loop(*last) != pytest.approx(5 / 6), "the same verdicts in another order"
    again = calibrated_ties("x", *last)
    assert again.value(again.columns.sum(0)) == pytest.approx(truth)


def test_videogen_reads_one_verdict_against_every_dimension():
    rows = [{**row, "VQ": "A", "MQ": "same"} for row in ROWS["videogen_rewardbench"]]
    card = scored("videogen_rewardbench", lambda e, o, s: 1, rows=rows)
    assert card["official", "Overall without ties"].value == pytest.approx(2 / 4)
    assert card["official", "Overall with ties"].value == pytest.approx(max(2 / 6, 2 / 6))
    assert card["official", "VQ without ties"].value == card["official", "VQ with ties"].value == 1.0
    assert math.isnan(card["official", "MQ without ties"].value)
    assert card["official", "MQ with ties"].value == 1.0
    assert card["official", "mean with ties"].value == pytest.approx((1 / 3 + 1 + 1 + 1 / 3) / 4)


def test_videogen_no_preference_is_wrong_where_somebody_has_one():
    card = scored("videogen_rewardbench", always_a)  # every margin is 0
    assert card["official", "Overall without ties"].value == 0.0
    assert card["official", "Overall with ties"].value == pytest.approx(2 / 6)
    assert card["official, file order", "Overall without ties"].value == pytest.approx(2 / 4)


def test_judgebench_counts_over_both_orders():
    def rule(example, order, sample):
        # j0 right and unread: +1. j1 right and wrong: 0. j2 right twice. j3 unread. j4 tie and right: +1.
        said = {"j0": (1, None), "j1": (2, 1), "j2": (1, 1), "j3": (None, None), "j4": ("tie", 1)}
        return said[example.id][order == "BA"]

    card = scored("judgebench", rule)
    assert card["official", "overall"].value == pytest.approx(3 / 5)
    assert card["official", "knowledge"].value == pytest.approx(1 / 2)
    assert (card["official", "math"].value, card["official", "reasoning"].value) == (1.0, 0.0)
    assert card["official", "macro"].value == pytest.approx((1 / 2 + 1 + 0 + 1) / 4)


def test_rm_bench_levels_and_domains():
    # Longer and prettier wins: chosen i beats rejected j iff i >= j, except that chat is all right.
    def rule(example, order, sample):
        i, j = example.id.split("/")[1]
        return 1 if example.facts["domain"] == "chat" or i >= j else 2

    card = scored("rm_bench", rule)
    for protocol in ("official", "official, both orders"):
        assert card[protocol, "chat"].value == 1.0
        assert card[protocol, "safety"].value == pytest.approx(2 / 3)
        assert card[protocol, "safety"].n == 2
        assert (card[protocol, "easy"].value, card[protocol, "normal"].value) == (1.0, 1.0)
        assert card[protocol, "hard"].value == pytest.approx(1 / 4)
        assert card[protocol, "overall"].value == pytest.approx((1 + 3 * 2 / 3) / 4)
    assert card["strict", "overall"].value == pytest.approx((9 + 4 * 6) / 45), (
        "micro, unlike the overall above"
    )


def test_mm_rlhf_rewardbench_acc_plus_needs_all_pairs_of_an_item():
    examples = examples_of("mm_rlhf_rewardbench")
    wrong = examples[1].id  # one of the two pairs of item a
    card = scored("mm_rlhf_rewardbench", lambda e, o, s: 2 if e.id == wrong else 1)
    assert card["official", "Acc"].value == pytest.approx(4 / 5)
    assert card["official", "Acc+"].value == pytest.approx(3 / 4)
    assert (card["official", "mcq"].value, card["official", "Acc+ mcq"].value) == (0.5, 0.0)
    assert card["official", "Acc+ mcq"].n == 1
    assert scored("mm_rlhf_rewardbench", always_a)["R1-Reward", "Acc"].value == 1.0


def test_rewardbench_2_best_of_four():
    card = scored(
        "rewardbench_2", lambda e, o, s: 2 if e.id == "2/0-1" else 1
    )  # one of three comparisons of Math
    assert card["pairwise", "Math"].value == 0.0
    assert card["pairwise", "Focus"].value == 1.0
    assert card["pairwise", "overall"].value == pytest.approx((4 + 0 + 1.01) / 6)
    assert card["strict", "Math"].value == pytest.approx(2 / 3)


def test_rewardbench_2_ties_by_hand():
    # tied:7: c0 beats both, c1 only r0. Scores: c0 1, c1 1/2, r0 0, r1 1/2. Spread 1/2, gap 0: not right.
    # ref:7: c beats both, gap 1. So 0.3 x 0 + 0.3 x 1 + 0 + 0 + 0.01 tanh(0 / 0.5 - 1).
    card = scored("rewardbench_2", lambda e, o, s: 2 if e.id == "tied:7/1-1" else 1)
    assert card["pairwise", "Ties"].value == pytest.approx(0.3 + 0.01 * math.tanh(-1))
    assert card["pairwise", "Ties"].n == 1


def test_sharegptvideo_split_is_a_hash_of_the_clip():
    rows = [
        {"id": f"v_{i}", "video": f"v_{i}", "prompt": "?", "chosen": "a", "rejected": "b"} for i in range(500)
    ]
    examples = examples_of("sharegptvideo", rows)
    assert [e.id.split("#")[0] for e in examples] == [r["video"] for r in rows if held_out(r["video"])]
    assert 15 <= len(examples) <= 45
    turns = {"conversations": [{"from": "human", "value": "<video>\nWhat?"}]}
    chosen = {side: {"from": "gpt", "value": side} for side in ("chosen", "rejected")}
    inside = examples[0].id.split("#")[0]
    (found,) = examples_of("sharegptvideo", [{"video": inside, **turns, **chosen}])
    assert (found.prompt, found.candidates, found.winner) == ("What?", ("chosen", "rejected"), 1)
    assert scored("sharegptvideo", oracle)["UnifiedReward", "overall"].value == 1.0


# --------------------------------------------------------------------------------------- bad rows


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vl_rewardbench", {"human_ranking": [0, 0]}, r"row 1: field 'human_ranking' is \[0, 0\]"),
        ("vl_rewardbench", {"response": ["only one"]}, "field 'response' must be a list of two"),
        ("vl_rewardbench", {"query": None}, "field 'query' is missing"),
        ("multimodal_rewardbench", {"Better": "Output3"}, "field 'Better' is 'Output3'"),
        ("multimodal_rewardbench", {"Category": "taste"}, "field 'Category' is 'taste'"),
        ("multimodal_rewardbench", {"Text": ""}, "field 'Text' is missing"),
        ("genai_bench", {"vote_type": "both"}, "field 'vote_type' .*'both'"),
        ("videogen_rewardbench", {"Overall": "C"}, "field 'Overall' is 'C'"),
        ("videogen_rewardbench", {"MQ": "C"}, "field 'MQ' is 'C'"),
        ("judgebench", {"label": "A=B"}, "field 'label' is 'A=B'"),
        ("judgebench", {"source": "exam"}, "field 'source' is 'exam'"),
        ("rm_bench", {"domain": "poetry"}, "field 'domain' is 'poetry'"),
        ("rm_bench", {"chosen": ["a"]}, "field 'chosen' must be a list of 3"),
        ("mm_rlhf_rewardbench", {"image": "other/1.png"}, "field 'image' is 'other/1.png'"),
        ("rewardbench_2", {"subset": "Chat"}, "field 'subset' is 'Chat'"),
        ("rewardbench_2", {"subset": "Ties"}, "field 'id' is '0'; ids of Ties"),
        ("sharegptvideo", {"answer": "Both."}, "field 'answer' is 'Both.'"),
    ],
)
def test_a_row_that_does_not_fit_names_file_row_and_field(name, change, message, tmp_path):
    row = {k: "x.png" if isinstance(v, dict) else v for k, v in {"id": "0", **ROWS[name][0]}.items()}
    path = write_rows(tmp_path / "rows.jsonl", {**row, **change})
    with pytest.raises(ValueError, match=message) as caught:
        load(name, path)
    assert str(caught.value).startswith(f"{path} row 1: ")


@pytest.mark.parametrize("name", ROWS)
def test_a_renamed_column_is_named(name, tmp_path):
    row = {k: "x.png" if isinstance(v, dict) else v for k, v in ROWS[name][0].items()}
    label = {
        "rm_bench": "chosen",
        "mm_rlhf_rewardbench": "chosen",
        "rewardbench_2": "chosen",
        "sharegptvideo": "answer",
    }
    label |= {
        "vl_rewardbench": "human_ranking",
        "multimodal_rewardbench": "Better",
        "genai_bench": "vote_type",
    }
    label |= {"videogen_rewardbench": "Overall", "judgebench": "label"}
    value = row.pop(label[name])
    path = write_rows(tmp_path / "rows.jsonl", {"id": "0", **row, "renamed": value})
    with pytest.raises(ValueError, match=f"row 1: field '{label[name]}'"):
        load(name, path)


# --------------------------------------------------------------------------------------- real files


@needs_realdata
@pytest.mark.parametrize(
    ("name", "file", "options", "counts"),
    [
        ("vl_rewardbench", "vl_rewardbench/fixture.jsonl", {}, {1: 53, 2: 5}),
        ("vl_rewardbench", "vl_rewardbench/r1_reward_format_sample.jsonl", {}, {1: 30}),
        ("genai_bench", "genai_bench/video_test_1889.json", {}, {1: 619, 2: 651, "tie": 619}),
        ("rm_bench", "rm_bench/chat_filtered.json", {"domain": "chat"}, {1: 129 * 9}),
        ("rm_bench", "rm_bench/code_filtered_sub25.json", {"domain": "code"}, {1: 25 * 9}),
        ("rm_bench", "rm_bench/safety-refuse_filtered_sub30.json", {"domain": "safety-refuse"}, {1: 30 * 9}),
        (
            "rm_bench",
            "rm_bench/safety-response_filtered_sub25.json",
            {"domain": "safety-response"},
            {1: 25 * 9},
        ),
        (
            "judgebench",
            "judgebench/dataset=judgebench,response_model=claude-3-5-sonnet-20240620.jsonl",
            {},
            {1: 143, 2: 127},
        ),
        ("videogen_rewardbench", "videogen_pairs/example.csv", {"label": "VQ"}, {2: 4, "tie": 4}),
        ("videogen_rewardbench", "videogen_pairs/example.csv", {"label": "TA"}, {1: 8}),
    ],
)
def test_real_files_read_with_the_right_counts(name, file, options, counts):
    examples = load(name, str(REALDATA / file), options=options)
    assert {w: sum(e.winner == w for e in examples) for w in (1, 2, "tie")} == {1: 0, 2: 0, "tie": 0} | counts
    assert len({e.id for e in examples}) == len(examples)
    assert score(find(name), examples, records(examples, oracle))["strict", "overall"].value == 1.0


@needs_realdata
def test_real_vl_rewardbench_ids_agree_between_its_two_forms():
    forms = [
        load("vl_rewardbench", str(REALDATA / "vl_rewardbench" / f))
        for f in ("fixture.jsonl", "r1_reward_format_sample.jsonl")
    ]
    ids = [{e.id for e in form} for form in forms]
    assert {name.split("#")[0] for name in ids[0] & ids[1]} == {
        "wildvision-battle-4069",
        "hallucination_pair-13698",
        "wildvision-battle-2581",
    }


def test_random_rows_never_break_a_protocol():
    draw = random.Random(0)
    for name in ROWS:
        for _ in range(5):
            rule = lambda e, o, s: draw.choice((1, 2, "tie", None))  # noqa: E731
            card = scored(name, rule, samples=2)
            for section in card.sections:
                for figure in section.figures:
                    assert math.isnan(figure.value) or -0.01 <= figure.value <= 1.01
