"""The paper's ablations and baselines in miniature, on the embedded world, over several seeds.

python experiments/ablation.py [--seeds=[0,1,2]] [--outputs=outputs/ablation]

What several variants share is trained once; what is finished is not done again. Results go to
``<outputs>/ablation.json`` and ``<outputs>/ablation.html``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jsonargparse import auto_cli
from tqdm import tqdm

from experiments.pipeline import MAX_COMPLETION, test_examples, train
from lit_msrl.cli import newest, run
from lit_msrl.engines import HFEngine
from lit_msrl.evaluation import Plan, examine, load_weights
from lit_msrl.judges import PolicyJudge
from lit_msrl.metrics import summarise
from lit_msrl.outputs import refuse_other_settings, write_whole
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.records import JudgementRecord
from lit_msrl.stages import DiscriminativeRM
from lit_msrl.types import TASK_TYPES
from lit_msrl.voting import majority

START, END = "<!-- ablation:start -->", "<!-- ablation:end -->"


@dataclass(frozen=True)
class Node:
    """A stage trained in a certain way from a certain predecessor.

    Attributes:
        stage: Name of the stage script.
        after: Whose weights it starts from; ``None`` for the base model.
        options: Command-line options that differ from the stage's defaults.
    """

    stage: str
    after: Node | None = None
    options: tuple[str, ...] = ()

    def chain(self) -> list[Any]:
        """Everything that decides its weights, but the seed."""
        return [self.stage, list(self.options), self.after.chain() if self.after else None]

    @property
    def folder(self) -> str:
        """A folder name of its own."""
        digest = hashlib.blake2b(json.dumps(self.chain()).encode(), digest_size=4).hexdigest()
        return f"{self.stage}-{digest}"


def stage3(after: Node | None, *options: str) -> Node:
    """The last stage."""
    return Node("stage3", after, options)


def tail(text: Node | None, *stage2: str) -> Node:
    """Stages 2a, 2b and 3 after stage 1."""
    return stage3(Node("cmkd", Node("stage2", text, stage2)))


def text(size: int | None = None) -> Node:
    """Stage 1, on so many text preferences with rationales and as many with labels (repeated as needed)."""
    options = () if size is None else (f"--data.train.size={size}",)
    return Node("stage1", Node("stage1_sft", None, options), options)


def labels(size: int) -> tuple[str, ...]:
    """So many labelled multimodal preferences."""
    return (f"--data.train.size={size}",)


FULL = tail(text())
VARIANTS: dict[str, Node] = {
    "MSRL": FULL,
    "without stage 1": tail(None),
    "without caption RL": stage3(Node("cmkd", text())),
    "without CMKD": stage3(Node("stage2", text())),
    "without stage 3": FULL.after,  # type: ignore[dict-item]
    "replay 1:0": tail(text(), "--data.replay=null"),
    "replay 1:1": tail(text(), "--data.replay_ratio=[1,1]"),
    **{f"text {n}": tail(text(n)) for n in (75, 300, 1200)},
    **{f"MSRL, {n} labels": stage3(FULL.after, *labels(n)) for n in (40, 640)},
    "generative baseline": Node("baseline", Node("baseline_sft")),
    **{
        f"generative baseline, {n} labels": Node("baseline", Node("baseline_sft", None, labels(n)), labels(n))
        for n in (40, 640)
    },
    "discriminative baseline": Node("discriminative"),
    **{f"discriminative baseline, {n} labels": Node("discriminative", None, labels(n)) for n in (40, 640)},
}
VOTES = (1, 2, 4, 8, 16)
PAPER = {  # VL-RewardBench, 8B (arXiv v1)
    "MSRL": 75.9, "without stage 1": 68.8, "without caption RL": 74.3, "without CMKD": 73.4,
    "without stage 3": 72.6, "generative baseline": 66.6, "replay 1:0": 74.6, "replay 4:1": 75.5,
    "replay 1:1": 73.8, "voting@16": 77.5,
}  # fmt: skip


def ablation(
    outputs: str = "outputs/ablation",
    seeds: list[int] | None = None,
    *,
    test_size: int = 400,
    voting_size: int = 160,
    options: list[str] | None = None,
    results: str | None = "docs/results.md",
) -> Path:
    """Train and measure every variant with every seed, then write the tables and the page.

    Args:
        outputs: Folder of all results.
        seeds: Seeds of data, order and sampling; by default 0, 1, 2.
        test_size: Held-out examples of the four multimodal tasks, each judged in both orders.
        voting_size: Of them, those on which MSRL votes, up to 16 times.
        options: Further options for every stage, such as ``--trainer.max_steps=2``.
        results: A Markdown file in whose ablation section the tables are put; ``null`` for none.

    Returns:
        The place of ``ablation.html``.
    """
    root, seeds = Path(outputs), [0, 1, 2] if seeds is None else seeds
    settings = {"test_size": test_size, "voting_size": voting_size, "options": options or []}
    refuse_other_settings(root, settings, option="--outputs")
    found: dict[str, dict[str, Any]] = {}
    for seed in seeds:
        folder = root / f"seed{seed}"
        for name, node in VARIANTS.items():
            print(f"\n##### seed {seed}: {name}", flush=True)
            checkpoint = trained(folder, node, seed, options or [])
            records = measured(folder / node.folder / "test.jsonl", node, checkpoint, test_size)
            found.setdefault(name, {})[str(seed)] = summarise(records, seed=seed)
        votes = voted(folder / FULL.folder / "votes.json", trained(folder, FULL, seed, []), voting_size)
        found.setdefault("voting", {})[str(seed)] = votes
        write_whole(root / "ablation.json", json.dumps(found, indent=1))
    return publish(root, found, Path(results) if results else None)


def trained(folder: Path, node: Node, seed: int, options: list[str]) -> Path:
    """The checkpoint of a node, trained first if need be, like all before it."""
    start = "base" if node.after is None else str(trained(folder, node.after, seed, options))
    place = folder / node.folder
    train(place, node.stage, seed, [f"--start_from={start}", *node.options, *options])
    checkpoint = newest(place, node.stage)
    assert checkpoint is not None
    return checkpoint


def measured(path: Path, node: Node, checkpoint: Path, size: int) -> list[JudgementRecord]:
    """Judgements of the test scenes, in both orders, from pixels."""
    if not path.is_file():
        examples = test_examples(list(TASK_TYPES[1:]), size, "test")
        if node.stage == "discriminative":
            model = DiscriminativeRM.load(GenerativeRMPolicy("tiny"), checkpoint)
            records = list(model.judge(examples))
        else:
            records = list(asked(checkpoint, examples, Plan(style="compact", batch_size=32), temperature=0.0))
        write_whole(path, "".join(json.dumps(record.to_json()) + "\n" for record in records))
    return [JudgementRecord.from_json(json.loads(line)) for line in path.read_text().splitlines()]


def voted(path: Path, checkpoint: Path, size: int) -> dict[str, float]:
    """Accuracy of majority votes over the first samples of each question; a tie goes to the first sample."""
    if not path.is_file():
        examples = test_examples(list(TASK_TYPES[1:]), size, "test")
        plan = Plan(style="compact", votes=max(VOTES), batch_size=8)
        ballots: dict[tuple[str, str], list[Any]] = {}
        for record in asked(checkpoint, examples, plan, temperature=1.0):
            ballots.setdefault((record.id, record.order), []).append(record)
        scores = {str(k): np.mean([verdict(b[:k]) == b[0].winner for b in ballots.values()]) for k in VOTES}
        write_whole(path, json.dumps({k: float(score) for k, score in scores.items()}))
    return json.loads(path.read_text())


def verdict(ballot: list[JudgementRecord]) -> Any:
    """What most of the samples prefer."""
    return majority([record.preferred for record in ballot]) or ballot[0].preferred


def asked(checkpoint: Path, examples: list[Any], plan: Plan, temperature: float) -> Iterator[JudgementRecord]:
    """A trained judge's verdicts."""
    policy = GenerativeRMPolicy("tiny")
    load_weights(policy, checkpoint)
    judge = PolicyJudge(policy, HFEngine(), max_completion=MAX_COMPLETION, temperature=temperature)
    records = examine(judge, examples, plan, decode=lambda example: example)
    total = len(examples) * plan.judgements
    return iter(tqdm(records, total=total, desc=f"judging: {checkpoint.parents[3].name}", leave=False))


# ---- what is shown -----------------------------------------------------------------------------------------

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


def cells(found: dict[str, dict[str, Any]]) -> dict[str, Cell]:
    """Accuracy of every variant and vote by its name."""
    votes = found["voting"]
    table = {f"voting@{k}": Cell(tuple(100 * votes[s][str(k)] for s in votes)) for k in VOTES}
    for name in VARIANTS:
        table[name] = Cell(tuple(100 * summary["accuracy"] for summary in found[name].values()))
    return table


def markdown(found: dict[str, dict[str, Any]]) -> str:
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


def publish(root: Path, found: dict[str, dict[str, Any]], results: Path | None) -> Path:
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


if __name__ == "__main__":
    run(lambda: auto_cli(ablation, exit_on_error=False))
