"""Figures a benchmark reports, each with its interval.

A figure is a function of *sums over examples*: a share is one sum over another, a macro average the mean of
several shares, a calibrated accuracy a maximum over thresholds. So one bootstrap serves them all: items are
drawn with replacement, the columns of every figure are summed over the draw, and each figure is computed from
its sums. Nothing here depends on the order of the rows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 9999
_CELLS = 4_000_000  # of the table of draws held in memory at a time


@dataclass(frozen=True)
class Figure:
    """A number about some examples.

    Attributes:
        name: What it is called within its protocol.
        columns: ``(examples, c)``, what is summed.
        value: From sums ``(..., c)`` to the number ``(...)``; ``nan`` where it is not defined.
        counted: ``(examples,)`` bool, the examples it is about.
    """

    name: str
    columns: np.ndarray
    value: Callable[[np.ndarray], np.ndarray]
    counted: np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A figure's value, its 95 % interval (``None`` where there are too few items for one), its items."""

    name: str
    value: float
    ci95: tuple[float, float] | None
    n: int


def share(name: str, part: Iterable[float], whole: Iterable[float] | None = None) -> Figure:
    """``sum(part) / sum(whole)``.

    Args:
        name: What the figure is called.
        part: ``(examples,)``.
        whole: ``(examples,)``, not negative; by default one each.
    """
    top = np.fromiter(part, dtype=float)
    bottom = np.ones_like(top) if whole is None else np.fromiter(whole, dtype=float)
    return Figure(
        name, np.stack([top, bottom], axis=1), lambda sums: _ratio(sums[..., 0], sums[..., 1]), bottom > 0
    )


def mean(name: str, figures: Sequence[Figure], weights: Sequence[float] | None = None) -> Figure:
    """The mean of figures (a macro average), or their weighted sum."""
    factors = np.full(len(figures), 1 / len(figures)) if weights is None else np.asarray(weights, dtype=float)
    edges = np.cumsum([0] + [figure.columns.shape[1] for figure in figures])

    def value(sums: np.ndarray) -> np.ndarray:
        parts = [f.value(sums[..., a:b]) for f, a, b in zip(figures, edges, edges[1:], strict=False)]
        return (np.stack(parts, axis=-1) * factors).sum(-1)  # `@` rounds one row otherwise than many

    columns = np.concatenate([figure.columns for figure in figures], axis=1)
    return Figure(name, columns, value, np.any([figure.counted for figure in figures], axis=0))


def grouped(
    groups: Sequence[str],
    part: Iterable[float],
    whole: Iterable[float] | None = None,
    *,
    overall: str = "overall",
    macro: str | None = "macro",
) -> list[Figure]:
    """A share of all examples (micro), the mean over groups (macro), and of each group.

    Args:
        groups: The group of each example.
        part: As in ``share``.
        whole: As in ``share``.
        overall: Name of the first figure.
        macro: Name of the second; ``None`` where the mean over groups is nobody's figure.
    """
    top = np.fromiter(part, dtype=float)
    bottom = np.ones_like(top) if whole is None else np.fromiter(whole, dtype=float)
    names = sorted(set(groups))
    members = {name: np.array([group == name for group in groups]) for name in names}
    shares = [share(name, top * members[name], bottom * members[name]) for name in names]
    first = share(overall, top, bottom)
    _reconcile(first, shares)
    if len(names) < 2:
        return [first]
    return [first, *([mean(macro, shares)] if macro else []), *shares]


def _reconcile(overall: Figure, shares: Sequence[Figure]) -> None:
    """The groups must make up the whole: no example in two groups or in none."""
    sums = np.sum([figure.columns.sum(axis=0) for figure in shares], axis=0)
    if not np.allclose(sums, overall.columns.sum(axis=0)):
        raise AssertionError(f"the groups of {overall.name!r} do not add up to it: {sums}")


def calibrated_ties(name: str, better: Sequence[int], margins: Sequence[float]) -> Figure:
    """Pairwise accuracy where the judge ties below a margin, at the best threshold.

    Deutsch et al., Ties Matter (arXiv:2305.14324). Judgements with equal margins pass the threshold together:
    a loop that takes the maximum after every row, as the published script of VideoGen-RewardBench does, also
    counts thresholds that no margin can realise, and so depends on the order of the rows. "No ties at all" is
    one of the thresholds.

    Args:
        name: What the figure is called.
        better: ``(examples,)``, 1 or -1 for the better candidate, 0 for a tie.
        margins: ``(examples,)``, how far the judge prefers candidate 1, negative for candidate 2.
    """
    label, margin = np.asarray(better), np.asarray(margins, dtype=float).round(12)
    levels = np.unique(np.abs(margin))
    at = np.abs(margin)[:, None] == levels  # (examples, levels)
    kinds = (label * margin > 0, label == 0)  # right when no tie is called, right when one is

    def value(sums: np.ndarray) -> np.ndarray:
        right, tied, total = np.split(sums, 3, axis=-1)
        none = np.zeros((*sums.shape[:-1], 1))
        called = np.concatenate(
            [none, tied.cumsum(-1)], axis=-1
        )  # ties called at the lowest 0, 1, ... levels
        chosen = right.sum(-1, keepdims=True) - np.concatenate([none, right.cumsum(-1)], axis=-1)
        return _ratio((called + chosen).max(-1), total.sum(-1))

    columns = [at & kind[:, None] for kind in kinds] + [at]
    return Figure(name, np.concatenate(columns, axis=1).astype(float), value, np.ones(len(label), dtype=bool))


def calibration_error(
    name: str, confidence: Sequence[float], right: Sequence[float], bins: int = 10
) -> Figure:
    """Expected calibration error with equal bins, as ``torchmetrics``' ``BinaryCalibrationError`` (l1)."""
    sure, hit = np.asarray(confidence, dtype=float), np.asarray(right, dtype=float)
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    inside = np.eye(bins)[place]
    columns = np.concatenate([inside * (sure - hit)[:, None], inside], axis=1)

    def value(sums: np.ndarray) -> np.ndarray:
        return _ratio(np.abs(sums[..., :bins]).sum(-1), sums[..., bins:].sum(-1))

    return Figure(name, columns, value, np.ones(len(sure), dtype=bool))


def selective(name: str, confidence: Sequence[float], right: Sequence[float], coverage: float) -> Figure:
    """Accuracy on the most confident part of the examples; of equally confident ones, an even part."""
    sure, hit = np.asarray(confidence, dtype=float).round(12), np.asarray(right, dtype=float)
    levels = np.unique(sure)[::-1]
    at = (sure[:, None] == levels).astype(float)
    columns = np.concatenate([at * hit[:, None], at], axis=1)

    def value(sums: np.ndarray) -> np.ndarray:
        hits, counts = np.split(sums, 2, axis=-1)
        wanted = coverage * counts.sum(-1, keepdims=True)
        taken = np.clip(wanted - (counts.cumsum(-1) - counts), 0, counts)
        return _ratio((taken * np.nan_to_num(_ratio(hits, counts))).sum(-1), wanted[..., 0])

    return Figure(name, columns, value, np.ones(len(sure), dtype=bool))


def estimate(figures: Sequence[Figure], items: Sequence[str], seed: int = 0) -> list[Estimate]:
    """Values of figures and their percentile bootstrap intervals over items.

    Args:
        figures: All of the same examples.
        items: The item of each example; the examples of an item are drawn together.
        seed: Seed of the bootstrap. The same seed draws the same items, so figures may be compared.
    """
    return _bootstrap([(figure.name, [figure], [1.0]) for figure in figures], items, seed)


def differences(
    a: Sequence[Figure], b: Sequence[Figure], items: Sequence[str], seed: int = 0
) -> list[Estimate]:
    """The figures of judge ``a`` less those of judge ``b``, paired: both are summed over the same items."""
    if [figure.name for figure in a] != [figure.name for figure in b]:
        raise ValueError("two judges can only be compared by the same figures")
    return _bootstrap([(x.name, [x, y], [1.0, -1.0]) for x, y in zip(a, b, strict=True)], items, seed)


def _bootstrap(
    wanted: Sequence[tuple[str, list[Figure], list[float]]], items: Sequence[str], seed: int
) -> list[Estimate]:
    figures = [mean(name, parts, weights) for name, parts, weights in wanted]
    names, place = np.unique(np.asarray(items), return_inverse=True)
    columns = np.concatenate([figure.columns for figure in figures], axis=1)
    table = np.zeros((len(names), columns.shape[1]))
    np.add.at(table, place, columns)
    edges = np.cumsum([0] + [figure.columns.shape[1] for figure in figures])

    def values(sums: np.ndarray) -> np.ndarray:
        return np.stack([f.value(sums[..., a:b]) for f, a, b in zip(figures, edges, edges[1:], strict=False)])

    point, drawn = values(table.sum(axis=0)), _draws(table, values, seed)
    counts = [len(set(place[figure.counted])) for figure in figures]
    return [
        Estimate(figure.name, float(value), _interval(draws) if n > 1 else None, n)
        for figure, value, draws, n in zip(figures, point, drawn, counts, strict=True)
    ]


def _draws(table: np.ndarray, values: Callable[[np.ndarray], np.ndarray], seed: int) -> np.ndarray:
    """The figures in every resample, ``(figures, resamples)``."""
    count = len(table)
    if count < 2:
        return values(table.sum(axis=0))[:, None]

    def statistic(index: np.ndarray, axis: int = -1) -> np.ndarray:
        rows = index.reshape(-1, count)
        flat = (rows + count * np.arange(len(rows))[:, None]).ravel()
        times = np.bincount(flat, minlength=rows.size).reshape(rows.shape)  # how often each item was drawn
        result = values(times @ table)
        return result if index.ndim > 1 else result[:, 0]

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", stats.DegenerateDataWarning
        )  # some figures never vary, or lack a group
        result = stats.bootstrap(
            (np.arange(count),), statistic, vectorized=True, n_resamples=RESAMPLES, method="percentile",
            batch=max(1, _CELLS // count), rng=np.random.default_rng(seed),
        )  # fmt: skip
    return result.bootstrap_distribution


def _interval(draws: np.ndarray) -> tuple[float, float] | None:
    """The middle 95 %; a resample in which a small group is absent says nothing."""
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, math.nan), where=whole > 0)
