"""The ablation's tables and page: what each variant reached, beside the paper's numbers."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from experiments.ablation_jobs import VOTES
from lit_msrl.outputs import write_whole

Found = dict[str, dict[str, Any]]  # by variant and seed
START, END = "<!-- ablation:start -->", "<!-- ablation:end -->"
PAPER = {  # VL-RewardBench, 8B (arXiv v1)
    "MSRL": 75.9, "without stage 1": 68.8, "without caption RL": 74.3, "without CMKD": 73.4,
    "without stage 3": 72.6, "generative baseline": 66.6, "replay 1:0": 74.6, "replay 4:1": 75.5,
    "replay 1:1": 73.8, "voting@16": 77.5,
}  # fmt: skip
ROWS = ("MSRL", "without stage 1", "without caption RL", "without CMKD", "without stage 3",
        "generative baseline", "discriminative baseline", "voting@16")  # fmt: skip
RATIOS = {"1:0": "replay 1:0", "4:1": "MSRL", "1:1": "replay 1:1"}
TEXTS = {75: "text 75", 300: "text 300", 1200: "text 1200", 4800: "MSRL"}
LABELS = {
    arm: {40: f"{arm}, 40 labels", 160: arm, 640: f"{arm}, 640 labels"}
    for arm in ("MSRL", "generative baseline", "discriminative baseline")
}


@dataclass(frozen=True)
class Cell:
    """Accuracies of one variant, in percent, one per seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.values))

    def __str__(self) -> str:
        spread = f" ± {np.std(self.values, ddof=1):.1f}" if len(self.values) > 1 else ""
        return f"{self.mean:.1f}{spread}"


def cells(found: Found) -> dict[str, Cell]:
    """Accuracy of every variant and vote by its name."""
    votes = found["voting"]
    table = {f"voting@{k}": Cell(tuple(100 * votes[s][str(k)] for s in votes)) for k in VOTES}
    for name in found.keys() - {"voting"}:
        table[name] = Cell(tuple(100 * summary["accuracy"] for summary in found[name].values()))
    return table


def markdown(found: Found) -> str:
    """The tables, for docs/results.md."""
    table, seeds = cells(found), ", ".join(found["MSRL"])
    lines = [f"Accuracy in percent, mean ± standard deviation over seeds {seeds}; chance is 50.", ""]
    lines += ["| variant | drawn world | paper, VL-RewardBench |", "| --- | --- | --- |"]
    lines += [f"| {name} | {table[name]} | {PAPER.get(name, '')} |" for name in ROWS]
    lines += ["", "| captions : replayed text | drawn world | paper |", "| --- | --- | --- |"]
    lines += [f"| {ratio} | {table[name]} | {PAPER['replay ' + ratio]} |" for ratio, name in RATIOS.items()]
    lines += ["", "| text preferences with rationales | MSRL |", "| --- | --- |"]
    lines += [f"| {n} | {table[name]} |" for n, name in TEXTS.items()]
    lines += ["", f"| labelled multimodal preferences | {' | '.join(LABELS)} |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {n} | {' | '.join(str(table[names[n]]) for names in LABELS.values())} |" for n in (40, 160, 640)
    ]
    lines += ["", f"| votes | {' | '.join(map(str, VOTES))} |", "| --- |" + " --- |" * len(VOTES)]
    lines += [f"| MSRL at temperature 1 | {' | '.join(str(table[f'voting@{k}']) for k in VOTES)} |", ""]
    return "\n".join(lines)


def publish(root: Path, found: Found, results: Path | None) -> Path:
    """Write the page, and the tables into the ablation section of a Markdown file."""
    if results is not None:
        before, _, rest = results.read_text().partition(START)
        _, _, after = rest.partition(END)
        write_whole(results, f"{before}{START}\n{markdown(found)}{END}{after}")
    source = (files("lit_msrl") / "templates" / "ablation.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(source).render(
        cells=cells(found), paper=PAPER, rows=ROWS, ratios=RATIOS, texts=TEXTS, labels=LABELS, votes=VOTES,
        seeds=list(found["MSRL"]), n=next(iter(found["MSRL"].values()))["n"],
    )  # fmt: skip
    path = root / "ablation.html"
    write_whole(path, page)
    print(f"Ablation: {path}")
    return path
