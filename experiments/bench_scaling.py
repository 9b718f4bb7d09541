"""How time and memory of a step grow with prompt, group and completion length: ours beside another trainer's.

python experiments/bench_scaling.py --peer_python=PYTHON --peer_script=FILE

``FILE`` is a script around the other trainer, ``PYTHON`` the interpreter it runs with. It has two commands:

- ``make DIR --prompt=N --rows=N`` writes a Hugging Face model into DIR, and ``workload.jsonl`` (its rows are
  described in ``profile_step.py``) with prompts of about so many tokens, pictures included;
- ``run DIR --prompts=N --group=N --completion=N --steps=N --threads=N`` takes one step that is not timed and
  ``steps`` that are. The last line it prints is JSON: ``peer`` (``trl``), ``prompts``, ``group``,
  ``completion``, ``threads``, ``step_seconds``, ``median_step_seconds``, ``peak_rss_gb``.

docs/performance.md says which model and which settings its table was made with. Every point has a
process of its own, one after the other, and becomes a line of ``--points``. Points that are there are not
measured again: delete their lines to do so. In the end the plot is drawn and the table in
docs/performance.md filled in.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli

from lit_msrl.cli import run

Side = Literal["lit_msrl", "trl"]
Record = dict[str, Any]
SIDES: dict[Side, str] = {"lit_msrl": "lit_msrl", "trl": "TRL"}
START, END = "<!-- numbers:start -->", "<!-- numbers:end -->"


@dataclass(frozen=True)
class Point:
    """One measurement; ``prompt`` and ``completion`` are tokens, ``prompts`` is prompts per step."""

    prompt: int = 1024
    group: int = 8
    completion: int = 128
    prompts: int = 1


HEADLINE = Point(prompts=4)
GRID: dict[str, tuple[int, ...]] = {
    "prompt": (256, 512, 1024, 2048, 4096),
    "group": (2, 4, 8, 16, 32),
    "completion": (32, 64, 128, 256, 512),
}


def bench_scaling(
    peer_python: str,
    peer_script: str,
    *,
    points: str = "docs/performance.jsonl",
    plot: str = "docs/images/performance.png",
    text: str = "docs/performance.md",
    steps: int = 2,
    threads: int = 2,
    limit: float = 600.0,
) -> None:
    """Measure what is missing, draw, fill in.

    Args:
        peer_python: Interpreter of the other trainer.
        peer_script: Its script.
        points: JSON lines that are added to.
        plot: The picture.
        text: The page whose table is filled in.
        steps: Steps that are timed at each point.
        threads: CPU threads.
        limit: Seconds after which a point is given up and noted as such.
    """
    path, here = Path(points), machine()
    with tempfile.TemporaryDirectory() as folder:
        for point, side in missing(read(path)):
            print(f"{side}: {point}", flush=True)
            workload = make(Path(folder), point.prompt, 4 * (steps + 1), peer_python, peer_script)
            command = commands(workload, peer_python, peer_script)[side] + options(point, steps, threads)
            with path.open("a") as file:
                print(json.dumps(asdict(point) | measure(side, command, limit) | here), file=file)
    records = read(path)
    draw(records, Path(plot))
    page = Path(text)
    page.write_text(filled(page.read_text(), table(records)))


def grid() -> Iterator[Point]:
    """The headline, then every axis through the middle."""
    seen = dict.fromkeys([HEADLINE])
    for axis, values in GRID.items():
        seen |= dict.fromkeys(replace(Point(), **{axis: value}) for value in values)
    yield from seen


def missing(records: list[Record]) -> Iterator[tuple[Point, Side]]:
    """What is not measured yet, both sides of a point next to each other."""
    done = {(key(record), record["peer"]) for record in records}
    for point in grid():
        for side in SIDES:
            if (point, side) not in done:
                yield point, side


def key(record: Record) -> Point:
    """The point a record belongs to."""
    return Point(**{name: record[name] for name in asdict(Point())})


def read(path: Path) -> list[Record]:
    """All records so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def make(folder: Path, prompt: int, rows: int, python: str, script: str) -> Path:
    """The model and the workload of a prompt length; made once."""
    target = folder / str(prompt)
    if not target.exists():
        command = [python, script, "make", str(target), f"--prompt={prompt}", f"--rows={rows}"]
        subprocess.run(command, check=True, capture_output=True)
    return target


def commands(workload: Path, python: str, script: str) -> dict[Side, list[str]]:
    """What is run for each side."""
    ours = [sys.executable, str(Path(__file__).with_name("profile_step.py"))]
    return {
        "lit_msrl": [*ours, f"--model={workload}", f"--workload={workload / 'workload.jsonl'}"],
        "trl": [python, script, "run", str(workload)],
    }


def options(point: Point, steps: int, threads: int) -> list[str]:
    """What both sides take; the prompt's length is in the workload."""
    given = {k: v for k, v in asdict(point).items() if k != "prompt"} | {"steps": steps, "threads": threads}
    return [f"--{name}={value}" for name, value in given.items()]


def measure(side: Side, command: list[str], limit: float) -> Record:
    """The last line of a process, or why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"peer": side, "left_out": f"longer than {limit:.0f} s"}
    if done.returncode:
        killed = done.returncode < 0
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"peer": side, "left_out": f"killed by signal {-done.returncode}" if killed else last}
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines else {"peer": side, "left_out": "printed nothing"}


def machine(info: Path = Path("/proc/cpuinfo")) -> Record:
    """Where and with what; a processor that the file does not name is called as Python calls it."""
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    name = next(iter(names), platform.processor() or platform.machine())
    return {
        "machine": f"{os.cpu_count()} x {name}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def draw(records: list[Record], path: Path) -> None:
    """Time above, memory below, one column per axis; logarithmic scales, dots where proportional."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter, NullLocator

    measures = {"median_step_seconds": "seconds per step", "peak_rss_gb": "peak memory, GB"}
    figure, axes = plt.subplots(len(measures), len(GRID), figsize=(11, 6), sharey="row", layout="constrained")
    for row, (measure_, label) in zip(axes, measures.items(), strict=True):
        for ax, axis in zip(row, GRID, strict=True):
            values = sorted(positions(records, axis).values())
            for (side, name), colour in zip(SIDES.items(), ("tab:blue", "tab:orange"), strict=True):
                line = on_axis(records, side, axis, measure_)
                ax.plot(list(line), list(line.values()), "o-", color=colour, label=name)
            ax.set(xscale="log", yscale="log", xticks=values, xticklabels=values)
            ax.xaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            ax.yaxis.set_minor_formatter(NullFormatter())
            first = min(ax.lines[1].get_ydata(), default=1.0)
            ax.autoscale(enable=False)
            ax.plot(values, [first * v / values[0] for v in values], ":", color="grey", label="proportional")
            ax.grid(alpha=0.3)
        row[0].set_ylabel(label)
    for ax, name in zip(
        axes[-1], ("prompt tokens", "completions per prompt", "completion tokens"), strict=True
    ):
        ax.set_xlabel(name)
    axes[0, 0].legend()
    fixed = f"{tokens(records, Point())} prompt tokens, 8 completions of 128 tokens"
    note = f"one prompt a step; where not varied: {fixed}"
    gone = [
        f"{r['peer']} at {r['prompt']}/{r['group']}/{r['completion']}" for r in records if "left_out" in r
    ]
    figure.suptitle(note + (f"\nleft out: {', '.join(gone)}" if gone else ""), fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def positions(records: list[Record], axis: str) -> dict[Point, int]:
    """Where the points of an axis lie on it."""
    points = {replace(Point(), **{axis: value}): value for value in GRID[axis]}
    return {p: tokens(records, p) if axis == "prompt" else value for p, value in points.items()}


def tokens(records: list[Record], point: Point) -> int:
    """Tokens of a point's prompt as our side counted them; those asked for where it did not."""
    counted = (r["prompt_tokens"] for r in records if key(r) == point and "prompt_tokens" in r)
    return next(counted, point.prompt)


def on_axis(records: list[Record], side: Side, axis: str, measure_: str) -> dict[int, float]:
    """What was measured along an axis, in its order."""
    wanted = positions(records, axis)
    found = {
        wanted[key(r)]: float(r[measure_])
        for r in records
        if r["peer"] == side and measure_ in r and key(r) in wanted
    }
    return dict(sorted(found.items()))


def table(records: list[Record]) -> str:
    """All points, both sides, in Markdown."""
    by = {(key(record), record["peer"]): record for record in records}
    heads = ["prompts", "prompt tokens", "completions", "completion tokens"]
    for unit in ("s", "GB"):
        heads += [*(f"{name}, {unit}" for name in SIDES.values()), "ratio"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for point in grid():
        ours, theirs = (by.get((point, side), {}) for side in SIDES)
        cells = [str(n) for n in (point.prompts, tokens(records, point), point.group, point.completion)]
        for name in ("median_step_seconds", "peak_rss_gb"):
            left, right = ours.get(name), theirs.get(name)
            cells += [f"{value:.2f}" if value else "–" for value in (left, right)]
            cells.append(f"1/{right / left:.1f}" if left and right else "–")
        lines.append(f"| {' | '.join(cells)} |")
    wheres = sorted({f"{r['machine']}, Python {r['python']}, torch {r['torch']}" for r in records})
    return "\n".join([*lines, "", *(f"Measured on {where}." for where in wheres)])


def filled(page: str, numbers: str) -> str:
    """The page with its table replaced."""
    before, rest = page.split(START)
    return f"{before}{START}\n{numbers}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    run(lambda: auto_cli(bench_scaling, as_positional=False))
