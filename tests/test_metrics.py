"""Metrics against numbers worked out by hand."""

import json
from dataclasses import replace

import pytest
import torch
from scipy import stats

from lit_msrl.metrics import PreferenceAccuracy, compare, summarise
from lit_msrl.records import JudgementRecord

TASK = "image understanding"


def judged(id: str, order: str, winner: int, preferred: int | None, task: str = TASK) -> JudgementRecord:
    return JudgementRecord(id, task, order, 0, winner, preferred, preferred is not None, None, "…")  # type: ignore[arg-type]


def both(id: str, winner: int, preferred: tuple, task: str = TASK) -> list[JudgementRecord]:
    return [judged(id, order, winner, p, task) for order, p in zip(("AB", "BA"), preferred, strict=True)]


def items(rights: list[int]) -> list[JudgementRecord]:
    """One item per entry: 2 both orders right, 1 only AB right, 0 none."""
    choice = {2: (1, 1), 1: (1, 2), 0: (2, 2)}
    return [r for i, n in enumerate(rights) for r in both(f"i{i}", 1, choice[n])]


def test_record_survives_json():
    record = JudgementRecord("a", "text", "BA", 3, 2, None, False, 0.25, "<think>\u2028</think>", 12)
    assert JudgementRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_order_decides_which_candidate_was_first():
    assert judged("a", "AB", 1, 1).chose_first
    assert not judged("a", "BA", 1, 1).chose_first
    assert judged("a", "BA", 1, 2).chose_first
    assert not judged("a", "BA", 1, None).chose_first


def test_oracle():
    records = both("a", 1, (1, 1)) + both("b", 2, (2, 2)) + both("c", 2, (2, 2), "text")
    summary = summarise(records)
    assert summary["accuracy"] == summary["macro"] == summary["swap_consistency"] == 1.0
    assert summary["ci95"] == [1.0, 1.0]
    assert summary["parse_failures"] == 0.0
    assert summary["first_position_rate"] == 0.5
    assert summary["n"] == 3


def test_judge_that_always_answers_a_is_exactly_at_chance():
    records = [r for i in range(7) for r in both(str(i), 1 + i % 2, (1, 2))]
    summary = summarise(records)
    assert summary["accuracy"] == 0.5
    assert summary["ci95"] == [0.5, 0.5]  # every item is half right: nothing varies between items
    assert summary["swap_consistency"] == 0.0
    assert summary["first_position_rate"] == 1.0


def test_by_hand():
    # a: right, right. b: right, unread. c (text): wrong, wrong. d (text): right, wrong.
    understanding = both("a", 1, (1, 1)) + both("b", 2, (2, None))
    summary = summarise(understanding + both("c", 1, (2, 2), "text") + both("d", 2, (2, 1), "text"))
    assert summary["accuracy"] == 4 / 8
    assert summary["per_task"][TASK]["accuracy"] == 3 / 4
    assert summary["per_task"]["text"]["accuracy"] == 1 / 4
    assert summary["per_task"]["text"]["n"] == 2
    assert list(summary["per_task"]) == ["text", TASK]
    assert summary["swap_consistency"] == 2 / 4  # a and c
    assert summary["parse_failures"] == 1 / 8
    # shown first and chosen: a AB (1), c BA (2), d BA (1 is second) no, d AB (2 is second) no, b AB (2) no
    assert summary["first_position_rate"] == 2 / 7


def test_macro_weighs_tasks_alike():
    records = [r for i in range(3) for r in both(str(i), 1, (1, 1))] + both("t", 1, (2, 2), "text")
    summary = summarise(records)
    assert summary["accuracy"] == 3 / 4
    assert summary["macro"] == 1 / 2


def test_interval_resamples_items_not_judgements():
    """100 items, half of them right in both orders: the standard error is 0.05, not 0.05 / sqrt(2)."""
    low, high = summarise(items([2] * 50 + [0] * 50))["ci95"]
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.011)
    assert high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.011)


def test_summary_is_seeded_and_plain_json():
    records = items([2, 1, 0, 2, 2, 1])
    assert summarise(records, seed=3) == summarise(records, seed=3)
    assert json.loads(json.dumps(summarise(records))) == summarise(records)


def test_one_item_has_a_point_for_an_interval():
    assert summarise(both("a", 1, (1, 2)))["ci95"] == [0.5, 0.5]


def test_swap_consistency_pairs_samples_and_needs_both_orders():
    twice = both("a", 1, (1, 1)) + [replace(r, sample=1) for r in both("a", 1, (1, 2))]
    assert summarise(twice)["swap_consistency"] == 0.5
    assert summarise([judged("a", "AB", 1, 1)])["swap_consistency"] is None


def test_unread_verdicts_agree_with_nothing():
    summary = summarise(both("a", 1, (None, None)))
    assert (summary["accuracy"], summary["swap_consistency"], summary["parse_failures"]) == (0.0, 0.0, 1.0)
    assert summary["first_position_rate"] is None


def test_nothing_to_summarise():
    with pytest.raises(ValueError, match="no judgements"):
        summarise([])


def test_compare_by_hand():
    """Five items a gains in full: of the 2^5 exchanges only the extreme two are as far from zero."""
    result = compare(items([2] * 5 + [1] * 2), items([0] * 5 + [1] * 2))
    assert result["difference"] == pytest.approx(10 / 14)
    assert result["p_value"] == pytest.approx(2 / 2**5)
    assert result["mcnemar_p"] == pytest.approx(2 / 2**5)
    assert result["ci95"][0] < 10 / 14 < result["ci95"][1]


def test_mcnemar_is_the_binomial_test_of_the_discordant_items():
    a, b = items([2, 2, 2, 2, 0, 2, 1, 0]), items([0, 1, 0, 0, 2, 2, 1, 0])
    assert compare(a, b)["mcnemar_p"] == pytest.approx(stats.binomtest(4, 5).pvalue)


def test_compare_is_antisymmetric_and_null_with_itself():
    a, b = items([2, 1, 2, 0, 2, 1]), items([1, 1, 0, 0, 2, 0])
    assert compare(a, b)["difference"] == -compare(b, a)["difference"] == (8 - 4) / 12
    assert compare(a, a) == {"difference": 0.0, "ci95": [0.0, 0.0], "p_value": 1.0, "mcnemar_p": 1.0}


def test_compare_of_one_item_proves_nothing():
    assert compare(items([2]), items([0])) == {
        "difference": 1.0, "ci95": [1.0, 1.0], "p_value": 1.0, "mcnemar_p": 1.0,
    }  # fmt: skip


def test_compare_does_not_depend_on_the_order_of_records():
    a, b = items([2, 1, 2, 0]), items([1, 1, 0, 0])
    assert compare(a, b) == compare(a[::-1], b)


def test_compare_refuses_other_items():
    with pytest.raises(ValueError, match="2 of 6 are of one only"):
        compare(items([2, 1]), items([2]))


def test_metric_by_hand():
    metric = PreferenceAccuracy()
    metric.update(torch.tensor([True, False, True]), ["text", "text", TASK])
    metric.update(torch.tensor([True]), [TASK])
    result = metric.compute()
    assert set(result) == {"accuracy", "macro", "text", "image_understanding"}
    assert result["accuracy"] == 3 / 4
    assert result["macro"] == (1 / 2 + 1) / 2
    assert result["text"] == 1 / 2


def test_metric_sums_over_ranks_that_saw_different_tasks():
    first, second = PreferenceAccuracy(), PreferenceAccuracy()
    first.update(torch.tensor([True, True, True]), ["text"] * 3)
    second.update(torch.tensor([False, False, True]), ["text", "video generation", "video generation"])
    others = iter([second.correct, second.total])
    first.sync(lambda state, group: [state, next(others)], distributed_available=lambda: True)
    assert first.correct.tolist() == [3, 0, 0, 0, 1]
    assert first.total.tolist() == [4, 0, 0, 0, 2]
    first.unsync()
    assert first.total.sum() == 3


def test_metric_resets_and_refuses_unknown_tasks():
    metric = PreferenceAccuracy()
    metric.update(torch.tensor([True]), ["text"])
    metric.reset()
    assert metric.total.sum() == 0
    with pytest.raises(ValueError, match="audio"):
        metric.update(torch.tensor([True]), ["audio"])
