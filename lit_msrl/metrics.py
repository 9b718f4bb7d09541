"""How well a judge agrees with the preferences: a summary of its records, two judges compared.

A benchmark item is judged in both orders (``AB``, and ``BA`` where candidate 2 is shown as A). An item's
judgements are not independent, so every interval and p-value here resamples *items*, never judgements.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import one_hot
from torchmetrics import Metric

from lit_msrl.records import JudgementRecord
from lit_msrl.types import TASK_TYPES, Winner

RESAMPLES = 9999
_BATCH = 256  # resamples held in memory at a time


def summarise(records: Sequence[JudgementRecord], seed: int = 0) -> dict[str, Any]:
    """Accuracy and what explains it, in plain JSON values.

    Args:
        records: Judgements of one judge.
        seed: Seed of the bootstrap.

    Returns:
        ``accuracy`` over all judgements (an unread verdict is wrong), its bootstrap interval ``ci95``,
        ``macro`` (mean over tasks), ``per_task`` (``accuracy``, ``ci95`` and ``n`` items each),
        ``swap_consistency`` (the share of items whose two orders prefer the same candidate; an unread verdict
        is inconsistent), ``parse_failures`` (share of judgements without a verdict), ``first_position_rate``
        (share of the choices that are A; a half is ideal) and ``n`` items. A share of nothing is ``None``.

    Raises:
        ValueError: There are no records.
    """
    if not records:
        raise ValueError("there are no judgements to summarise")
    tasks = sorted({r.task_type for r in records}, key=_task_index)
    per_task = {task: _accuracy([r for r in records if r.task_type == task], seed) for task in tasks}
    return {
        **_accuracy(records, seed),
        "macro": float(np.mean([task["accuracy"] for task in per_task.values()])),
        "per_task": per_task,
        "swap_consistency": _share(swap_pairs(records)),
        "parse_failures": _share(r.preferred is None for r in records),
        "first_position_rate": _share(r.chose_first for r in records if r.decided),
    }


def compare(a: Sequence[JudgementRecord], b: Sequence[JudgementRecord], seed: int = 0) -> dict[str, Any]:
    """How much better judge ``a`` is than judge ``b`` on the same items.

    Args:
        a: Judgements of the one judge.
        b: Judgements of the other, of the same items in the same orders.
        seed: Seed of the bootstrap and of the permutations.

    Returns:
        ``difference`` of the accuracies, its paired bootstrap interval ``ci95``, ``p_value`` of the two-sided
        paired permutation test, and ``mcnemar_p`` of the exact McNemar test, where an item counts as right
        when all its judgements are.

    Raises:
        ValueError: The two were not asked the same.
    """
    asked_a, asked_b = (Counter((r.id, r.order, r.sample) for r in records) for records in (a, b))
    if asked_a != asked_b or not a:
        alone = ((asked_a - asked_b) + (asked_b - asked_a)).total()
        raise ValueError(
            f"compare two judges on the same questions; {alone} of {len(a) + len(b)} are of one only"
        )
    right_a, total = _by_item(a)
    right_b, _ = _by_item(b)  # the same ids, sorted: paired
    gain = right_a - right_b
    return {
        "difference": float(gain.sum() / total.sum()),
        "ci95": _interval(gain, total, seed),
        "p_value": _permutation_p(right_a, right_b, seed),
        "mcnemar_p": _mcnemar_p(right_a == total, right_b == total),
    }


class PreferenceAccuracy(Metric):
    """Accuracy over all judgements, as the mean over tasks, and per task.

    Counts are summed over ranks before they are divided, and every rank counts every task, seen or not.
    """

    full_state_update = False
    higher_is_better = True
    correct: Tensor
    total: Tensor

    def __init__(self) -> None:
        """Count nothing yet."""
        super().__init__()
        self.add_state("correct", torch.zeros(len(TASK_TYPES), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(len(TASK_TYPES), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, correct: Tensor, tasks: Sequence[str]) -> None:
        """Count some judgements.

        Args:
            correct: ``(B,)`` bool, whether the judge chose the better candidate.
            tasks: The ``B`` task types.
        """
        task = torch.tensor([_task_index(name) for name in tasks], dtype=torch.long, device=self.total.device)
        seen = one_hot(task, len(TASK_TYPES))  # (B, tasks)
        self.correct += (seen * correct.to(seen)[:, None]).sum(0)
        self.total += seen.sum(0)

    def compute(self) -> dict[str, Tensor]:
        """``accuracy``, ``macro`` and, by name with ``_`` for spaces, every task that was seen."""
        seen = self.total > 0
        accuracy = self.correct / self.total.clamp(min=1)
        per_task = {task.replace(" ", "_"): accuracy[i] for i, task in enumerate(TASK_TYPES) if seen[i]}
        overall = self.correct.sum() / self.total.sum().clamp(min=1)
        return {"accuracy": overall, "macro": accuracy.sum() / seen.sum().clamp(min=1), **per_task}


def _accuracy(records: Sequence[JudgementRecord], seed: int) -> dict[str, Any]:
    right, total = _by_item(records)
    accuracy = float(right.sum() / total.sum())
    return {"accuracy": accuracy, "ci95": _interval(right, total, seed), "n": len(total)}


def _by_item(records: Sequence[JudgementRecord]) -> tuple[np.ndarray, np.ndarray]:
    """Right judgements and judgements of every item, both ``(items,)``, sorted by id."""
    items: defaultdict[str, list[bool]] = defaultdict(list)
    for record in records:
        items[record.id].append(record.correct)
    right = [(sum(items[key]), len(items[key])) for key in sorted(items)]
    return np.array([r for r, _ in right], dtype=float), np.array([n for _, n in right], dtype=float)


def _interval(part: np.ndarray, whole: np.ndarray, seed: int) -> list[float]:
    """The 95 % percentile bootstrap interval of ``sum(part) / sum(whole)`` over items."""
    if len(part) < 2:
        return [float(part.sum() / whole.sum())] * 2
    result = stats.bootstrap(
        (part, whole), _ratio, paired=True, vectorized=True, n_resamples=RESAMPLES, batch=_BATCH,
        method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = result.confidence_interval
    return [float(low), float(high)]


def _ratio(part: np.ndarray, whole: np.ndarray, axis: int = -1) -> np.ndarray:
    return part.sum(axis=axis) / whole.sum(axis=axis)


def _permutation_p(right_a: np.ndarray, right_b: np.ndarray, seed: int) -> float:
    if len(right_a) < 2:
        return 1.0  # exchanging the one item changes nothing but the sign
    result = stats.permutation_test(
        (right_a, right_b), lambda a, b, axis=-1: (a - b).sum(axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=RESAMPLES, batch=_BATCH, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.pvalue)


def _mcnemar_p(right_a: np.ndarray, right_b: np.ndarray) -> float:
    from statsmodels.stats.contingency_tables import mcnemar  # slow to import, and only needed here

    table = [[int(np.sum((right_a == i) & (right_b == j))) for j in (True, False)] for i in (True, False)]
    return float(mcnemar(table, exact=True).pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def swap_pairs(records: Sequence[JudgementRecord]) -> list[bool]:
    """Of every question put in both orders, whether the two verdicts agree; an unread verdict never does."""
    pairs: defaultdict[tuple[str, int], dict[str, Winner | None]] = defaultdict(dict)
    for record in records:
        pairs[record.id, record.sample][record.order] = record.preferred
    return [pair["AB"] is not None and pair["AB"] == pair["BA"] for pair in pairs.values() if len(pair) == 2]


def _share(flags: Iterable[bool]) -> float | None:
    values = list(flags)
    return sum(values) / len(values) if values else None


def _task_index(task: str) -> int:
    if task not in TASK_TYPES:
        raise ValueError(f"unknown task_type {task!r}; use one of {', '.join(TASK_TYPES)}")
    return TASK_TYPES.index(task)
