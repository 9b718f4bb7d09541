"""Figures by hand, and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from lit_msrl.figures import (
    Estimate,
    Figure,
    calibrated_ties,
    calibration_error,
    differences,
    estimate,
    grouped,
    mean,
    selective,
    share,
)
from lit_msrl.metrics import summarise
from lit_msrl.records import JudgementRecord


def value(figure: Figure) -> float:
    return float(figure.value(figure.columns.sum(axis=0)))


def names(count: int) -> list[str]:
    return [f"i{k}" for k in range(count)]


def test_share_and_mean():
    first, second = share("a", [1, 0, 1], [1, 1, 2]), share("b", [1, 0, 0])
    assert value(first) == pytest.approx(2 / 4)
    assert value(mean("m", [first, second])) == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert value(mean("d", [first, second], [1, -1])) == pytest.approx(1 / 2 - 1 / 3)
    assert math.isnan(value(share("none", [0, 0], [0, 0])))


def test_groups_micro_and_macro():
    figures = {f.name: value(f) for f in grouped(["x", "x", "x", "y"], [1, 1, 0, 0])}
    assert figures == pytest.approx({"overall": 2 / 4, "macro": 1 / 3, "x": 2 / 3, "y": 0.0})
    assert [f.name for f in grouped(["x", "x"], [1, 0])] == ["overall"]
    assert [f.name for f in grouped(["x", "y"], [1, 0], macro=None)] == ["overall", "x", "y"]


def test_a_mean_of_one_row_is_to_the_bit_that_of_many() -> None:
    """Else a figure may lie outside an interval of no width."""
    rng = np.random.default_rng(0)
    for count in range(2, 9):
        macro = mean("macro", [share(str(i), [1.0]) for i in range(count)])
        sums = rng.random((50, 2 * count))
        assert np.array_equal(macro.value(sums), [macro.value(row) for row in sums])


def test_an_interval_is_that_of_the_records_summary():
    rights = np.random.default_rng(1).integers(0, 3, 60)  # of two judgements
    judged = [
        JudgementRecord(f"{i:02}", "text", order, 0, 1, 1 if k < right else 2, True, None, "")  # type: ignore[arg-type]
        for i, right in enumerate(rights)
        for k, order in enumerate(("AB", "BA"))
    ]
    (found,) = estimate([share("x", rights, [2] * 60)], [f"{i:02}" for i in range(60)])
    summary = summarise(judged)
    assert found.value == pytest.approx(summary["accuracy"])
    assert found.ci95 == pytest.approx(summary["ci95"], abs=0.01)


def test_examples_of_an_item_are_drawn_together():
    hits = np.random.default_rng(0).integers(0, 2, 50).astype(float)
    alone = estimate([share("x", hits)], names(50))[0]
    repeated = estimate([share("x", np.repeat(hits, 9))], np.repeat(names(50), 9).tolist())[0]
    assert (repeated.n, repeated.ci95) == (50, pytest.approx(alone.ci95))
    apart = estimate([share("x", np.repeat(hits, 9))], names(450))[0]
    assert apart.ci95 is not None
    assert repeated.ci95 is not None
    assert apart.ci95[1] - apart.ci95[0] < 0.5 * (repeated.ci95[1] - repeated.ci95[0])


def test_too_few_items_have_no_interval():
    assert estimate([share("x", [1, 0])], ["a", "a"]) == [Estimate("x", 0.5, None, 1)]
    small = {f.name: f for f in estimate(grouped(["x", "y", "y"], [1, 0, 1]), names(3))}
    assert small["x"].ci95 is None
    assert small["y"].ci95 == (0.0, 1.0)


def test_a_group_that_a_resample_lacks_does_not_spoil_the_interval():
    figures = grouped(["x"] * 2 + ["y"] * 20, [1, 1] + [0, 1] * 10)
    macro = {f.name: f for f in estimate(figures, names(22))}["macro"]
    assert macro.ci95 is not None
    assert 0.6 < macro.ci95[0] < 0.75 < macro.ci95[1] < 0.9


def test_differences_are_paired():
    hits = np.random.default_rng(0).integers(0, 2, 80).astype(float)
    same = differences([share("x", hits)], [share("x", hits)], names(80))[0]
    assert (same.value, same.ci95) == (0.0, (0.0, 0.0))
    other = hits.copy()
    other[:8] = 1 - other[:8]
    other[:8] = 0
    gap = differences([share("x", hits)], [share("x", other)], names(80))[0]
    assert gap.value == pytest.approx((hits[:8]).sum() / 80)
    assert gap.ci95 is not None
    assert gap.ci95[1] < 0.15, "the 72 equal items cancel"
    with pytest.raises(ValueError, match="the same figures"):
        differences([share("x", hits)], [share("y", hits)], names(80))


def test_calibrated_ties_by_hand():
    # margins 0.2 (tie), 0.5 (right), 0.5 (tie), 1 (right), 1 (wrong)
    better, margins = [0, 1, 0, -1, 1], [0.2, 0.5, -0.5, -1.0, -1.0]
    assert value(calibrated_ties("x", better, margins)) == pytest.approx(3 / 5)  # at 0.2 or at 0.5: 1+2, 2+1
    assert value(calibrated_ties("x", [0, 0], [0.0, 0.0])) == 1.0
    assert value(calibrated_ties("x", [1, -1], [1.0, -1.0])) == 1.0  # no threshold: no ties
    assert value(calibrated_ties("x", [1, -1], [0.0, 0.0])) == 0.0


def test_calibration_error_is_that_of_torchmetrics():
    draw = np.random.default_rng(0)
    sure = draw.uniform(size=300)
    right = (draw.uniform(size=300) < sure**2).astype(int)
    expected = binary_calibration_error(torch.tensor(sure), torch.tensor(right), n_bins=10, norm="l1")
    assert value(calibration_error("x", sure.tolist(), right.tolist())) == pytest.approx(
        float(expected), abs=1e-6
    )
    assert value(calibration_error("x", [1.0, 1.0], [1, 1])) == 0.0
    assert value(calibration_error("x", [1.0, 1.0], [0, 1])) == 0.5


def test_selective_accuracy_shares_what_is_equally_confident():
    sure, right = [0.9, 0.6, 0.6, 0.5], [1, 1, 0, 0]
    assert value(selective("x", sure, right, 0.25)) == 1.0
    assert value(selective("x", sure, right, 0.5)) == pytest.approx((1 + 0.5) / 2)
    assert value(selective("x", sure[::-1], right[::-1], 0.5)) == pytest.approx((1 + 0.5) / 2)
    assert value(selective("x", sure, right, 1.0)) == 0.5
