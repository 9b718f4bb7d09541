"""Learning curves: read from a run's log, and drawn as points in a box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Curve = tuple[Sequence[int], Sequence[float]]  # steps, values
_HEADLINE_TAGS = ("accuracy", "reward", "loss", "length")  # shown first, in this order
_BOOKKEEPING_TAGS = {"epoch", "hp_metric"}
_LONGEST_CURVE = 400


def read_curves(log_dir: Path) -> dict[str, Curve]:
    """Every scalar in a folder's TensorBoard event files, by tag: ``(steps, values)``."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow to import

    events = EventAccumulator(str(log_dir), size_guidance={"scalars": 0}).Reload()
    scalars = {tag: events.Scalars(tag) for tag in sorted(events.Tags()["scalars"])}
    return {tag: ([e.step for e in points], [e.value for e in points]) for tag, points in scalars.items()}


def charts(curves: Mapping[str, Curve]) -> list[dict[str, Any]]:
    """A chart of every curve that can be drawn, what matters most first."""

    def rank(tag: str) -> tuple[int, str]:
        return next((i for i, word in enumerate(_HEADLINE_TAGS) if word in tag), len(_HEADLINE_TAGS)), tag

    shown = [tag for tag in sorted(curves, key=rank) if tag not in _BOOKKEEPING_TAGS]
    return [drawn for tag in shown if (drawn := chart(tag, curves[tag])) is not None]


def chart(tag: str, curve: Curve) -> dict[str, Any] | None:
    """A curve in a 100 x 100 box, as it was and smoothed; ``None`` where there is no curve to draw."""
    steps, values = (np.asarray(axis, dtype=float) for axis in curve)
    steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
    if len(steps) < 2 or steps[0] == steps[-1]:
        return None
    smooth = smoothed(values)
    share = "accuracy" in tag
    low, high = (0.0, 1.0) if share else (float(values.min()), float(values.max()))
    thin = np.linspace(0, len(steps) - 1, min(len(steps), _LONGEST_CURVE)).astype(int)
    x = 100 * (steps - steps[0]) / (steps[-1] - steps[0])

    def points(series: np.ndarray) -> str:
        y = 96 - 92 * (series - low) / ((high - low) or 1.0)
        return " ".join(f"{x[i]:.2f},{y[i]:.2f}" for i in thin)

    return {
        "tag": tag, "raw": points(values), "smooth": points(smooth), "value": f"{smooth[-1]:.3g}",
        "chance": share,
        "low": f"{low:.2g}", "high": f"{high:.2g}", "first": int(steps[0]), "last": int(steps[-1]),
    }  # fmt: skip


def smoothed(values: np.ndarray) -> np.ndarray:
    """A centred Hann-weighted mean over about a sixth of the curve."""
    window = np.hanning(2 * (len(values) // 12) + 3)[1:-1]
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")
