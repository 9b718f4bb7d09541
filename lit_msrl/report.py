"""One self-contained HTML page on what a run learned, and the same numbers as JSON beside it.

The page needs no network and runs no script; what a model wrote is untrusted text and always escaped.
Pictures are embedded, so every medium of a card must be decoded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from rich.console import Console
from rich.table import Table

from lit_msrl.cards import JudgementCard, as_shown
from lit_msrl.curves import Curve, charts
from lit_msrl.outputs import write_whole
from lit_msrl.types import TASK_TYPES

ARMS = {"base": "Base", "generative_baseline": "Generative baseline", "msrl": "MSRL"}
STAGES = {
    "base": "Base",
    "stage1_sft": "Stage 1 · SFT",
    "stage1": "Stage 1 · text RL",
    "stage2": "Stage 2 · caption RL",
    "cmkd": "CMKD · distilled",
    "stage3": "Stage 3 · visual RL",
}
VIEWS = ("text", "caption", "visual")


@dataclass(frozen=True)
class StageSummary:
    """A stage of a run, after it.

    Attributes:
        name: The stage, as in ``STAGES`` where it is one of the paper's.
        arm: The arm it belongs to; stages of ``base`` lead to every other arm.
        steps: Optimizer steps.
        seconds: Wall time.
        accuracy_after: Held-out accuracy by view (``text``, ``caption``, ``visual``).
        curves: What was logged while it ran (``read_curves``).
    """

    name: str
    arm: str
    steps: int
    seconds: float
    accuracy_after: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSummary:
    """Everything a report says.

    Attributes:
        arms: ``metrics.summarise`` of every arm, in the order of the table.
        comparison: ``metrics.compare`` of MSRL with the generative baseline; empty when one is missing.
        stages: The stages, in the order they ran.
        cards: Judgements to show.
        seconds: Wall time of the run.
        seed: Its seed.
        versions: Of the libraries that matter.
        settings: What the reader needs to repeat the run.
    """

    arms: Mapping[str, Mapping[str, Any]]
    comparison: Mapping[str, Any]
    stages: Sequence[StageSummary]
    cards: Sequence[JudgementCard]
    seconds: float
    seed: int
    versions: Mapping[str, str]
    settings: Mapping[str, Any]


def write_report(folder: Path, run: RunSummary) -> Path:
    """Write ``report.html`` and ``report.json``, each whole or not at all.

    Args:
        folder: Where to; made if it is missing.
        run: What to report.

    Returns:
        The page.
    """
    page, numbers = _page(run), json.dumps(_plain(_numbers(run)), indent=2, allow_nan=False) + "\n"
    write_whole(folder / "report.json", numbers)
    write_whole(folder / "report.html", page)
    return folder / "report.html"


def print_table(run: RunSummary, page: Path) -> None:
    """Print the arms' accuracies and where the page is."""
    table = Table(
        "accuracy, % [95 %]", title="Held-out preferences, greedy, both orders", title_justify="left"
    )
    for arm in run.arms:
        table.add_column(_title(arm, ARMS), justify="right")
    table.add_row("all", *(_interval_text(summary) for summary in run.arms.values()), style="bold")
    for task in _tasks(run):
        table.add_row(task, *(_interval_text(summary["per_task"].get(task)) for summary in run.arms.values()))
    for row, key in (("swap consistency", "swap_consistency"), ("no verdict", "parse_failures")):
        table.add_row(row, *(_percent(summary[key]) for summary in run.arms.values()))
    console = Console()
    console.print(table)
    if run.comparison:
        gain, p = 100 * run.comparison["difference"], run.comparison["p_value"]
        console.print(f"MSRL minus generative baseline: {gain:+.1f} points (p = {p:.2g})")
    console.print(f"Report: {page}", soft_wrap=True)


def _numbers(run: RunSummary) -> dict[str, Any]:
    comparison = dict(run.comparison)
    if comparison:
        comparison = {"msrl_minus_baseline": comparison.pop("difference"), **comparison}
    fields = ("name", "arm", "steps", "seconds", "accuracy_after")
    return {
        "arms": run.arms,
        "comparison": comparison,
        "stages": [{key: vars(stage)[key] for key in fields} for stage in run.stages],
        "seconds": run.seconds,
        "seed": run.seed,
        "versions": run.versions,
        "settings": run.settings,
    }


def _plain(value: Any) -> Any:
    """The value in what JSON has; numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


def _page(run: RunSummary) -> str:
    return _template().render(
        run=run,
        tasks=_tasks(run),
        ladders=_ladders(run.stages),
        charts=[(stage, charts(stage.curves)) for stage in run.stages if stage.curves],
        cards=[as_shown(card) for card in run.cards],
        views=VIEWS,
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": _percent,
        "duration": _duration,
        "arm": lambda name: _title(name, ARMS),
        "stage": lambda name: _title(name, STAGES),
    }
    return environment.from_string(
        (files("lit_msrl") / "templates/report.html.jinja").read_text(encoding="utf-8")
    )


def _tasks(run: RunSummary) -> list[str]:
    seen = {task for summary in run.arms.values() for task in summary["per_task"]}
    return [task for task in TASK_TYPES if task in seen]


def _ladders(stages: Sequence[StageSummary]) -> list[dict[str, Any]]:
    """The stages that led to each arm: those of the base, then its own."""
    measured = [stage for stage in stages if stage.accuracy_after]
    base = [stage for stage in measured if stage.arm == "base"]
    arms = list(dict.fromkeys(stage.arm for stage in measured if stage.arm != "base")) or ["base"]
    ladders = [(arm, base + [s for s in measured if s.arm == arm != "base"]) for arm in arms]
    lowest = min((value for stage in measured for value in stage.accuracy_after.values()), default=0.5)
    floor = min(0.4, math.floor(10 * lowest) / 10)
    return [{"arm": arm, "stages": steps, "floor": floor} for arm, steps in ladders if steps]


def _title(name: str, titles: Mapping[str, str]) -> str:
    return titles.get(name, name.replace("_", " "))


def _percent(share: float | None) -> str:
    return "–" if share is None or math.isnan(share) else f"{100 * share:.1f}"


def _interval_text(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return "–"
    low, high = summary["ci95"]
    return f"{_percent(summary['accuracy'])} [{100 * low:.0f}, {100 * high:.0f}]"


def _duration(seconds: float) -> str:
    """The time in the two units that matter.

    Example:
        >>> _duration(7.25), _duration(200), _duration(4000)
        ('7.2 s', '3 min 20 s', '1 h 6 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
