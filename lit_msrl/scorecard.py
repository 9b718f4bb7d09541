"""Scorecards for people: tables on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_msrl.benchmark import Benchmark, Scorecard, Section
from lit_msrl.figures import Estimate

CURVE = "voting"  # the protocol whose figures are points of a curve


def show(console: Console, benchmark: Benchmark, card: Scorecard) -> None:
    """Print everything a scorecard says."""
    console.print(_heading(benchmark, card), highlight=False)
    table = _table("%")
    for section in [section for section in card.sections if section.protocol != CURVE]:
        _add(table, section, _percent, _range)
    console.print(table)
    for section in [section for section in card.sections if section.protocol == CURVE]:
        console.print(_curve(section))
    _explain(console, card.sections, card.left_out)


def show_comparison(
    console: Console, title: str, sections: Sequence[Section], tests: Mapping[str, Any]
) -> None:
    """Print how much better one judge is than another."""
    console.print(f"[bold]{escape(title)}[/], paired on the same examples", highlight=False)
    table = _table("points")
    for section in [section for section in sections if section.protocol != CURVE]:
        _add(table, section, _points, _point_range)
    console.print(table)
    low, high = (100 * bound for bound in tests["ci95"])
    console.print(
        f"All {tests['of']}: {100 * tests['difference']:+.1f} points [{low:+.1f}, {high:+.1f}], "
        f"permutation test p = {tests['p_value']:.2g}, McNemar p = {tests['mcnemar_p']:.2g}",
        highlight=False,
    )
    _explain(console, sections, {})


def _heading(benchmark: Benchmark, card: Scorecard) -> str:
    parts = [
        f"[bold]{escape(card.benchmark)}[/] (version {card.version})",
        f"{card.examples:,} examples",
        f"{card.judgements:,} judgements",
        f"data {card.data}",
    ]
    lines = [" · ".join(parts)]
    if card.absent:
        lines.append(f"[yellow]partial: {card.absent:,} examples of the data were not judged[/]")
    elif benchmark.sizes and card.examples not in benchmark.sizes.values():
        sizes = ", ".join(f"{name} {size:,}" for name, size in benchmark.sizes.items())
        lines.append(f"[yellow]not a published size ({escape(sizes)})[/]")
    return "\n".join(lines)


def _table(number: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("protocol", "figure"):
        table.add_column(name, no_wrap=True)
    for name in (number, "95 % interval", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _add(table: Table, section: Section, number: Any, interval: Any) -> None:
    for i, figure in enumerate(section.figures):
        name = section.protocol if i == 0 else ""
        style = "bold" if i == 0 else ""
        table.add_row(
            escape(name), escape(figure.name), number(figure), interval(figure), f"{figure.n:,}", style=style
        )
    table.add_section()


def _curve(section: Section) -> Table:
    found = {figure.name: figure for figure in section.figures}
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title="voting", title_justify="left", title_style="bold"
    )
    for name in ("judgements", "accuracy, %", "95 % interval", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, figure in found.items():
        kind, _, votes = name.partition("@")
        if kind == "vote":
            table.add_row(votes, _percent(figure), _range(figure), _count(found.get(f"tokens@{votes}")))
    for name, figure in found.items():
        if "stopped" in name:
            votes = name.partition("@")[2].partition(",")[0]
            last = found[f"vote@{votes}"]
            table.add_row(f"{votes}, until decided", _percent(last), _range(last), _count(figure))
    return table


def _explain(console: Console, sections: Sequence[Section], left_out: Mapping[str, str]) -> None:
    notes = Table.grid(padding=(0, 2))
    notes.add_column(style="bold dim")
    notes.add_column(style="dim")
    for section in sections:
        notes.add_row(escape(section.protocol), escape(section.how))
    for name, reason in left_out.items():
        notes.add_row(escape(name), escape(f"left out: {reason}"))
    console.print(notes)


def _percent(figure: Estimate) -> str:
    return "–" if math.isnan(figure.value) else f"{100 * figure.value:.1f}"


def _range(figure: Estimate) -> str:
    return "–" if figure.ci95 is None else f"{100 * figure.ci95[0]:.1f} – {100 * figure.ci95[1]:.1f}"


def _points(figure: Estimate) -> str:
    return "–" if math.isnan(figure.value) else f"{100 * figure.value:+.1f}"


def _point_range(figure: Estimate) -> str:
    return "–" if figure.ci95 is None else f"{100 * figure.ci95[0]:+.1f} – {100 * figure.ci95[1]:+.1f}"


def _count(figure: Estimate | None) -> str:
    return "–" if figure is None else f"{figure.value:,.0f}"
