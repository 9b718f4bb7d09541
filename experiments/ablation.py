"""The paper's ablations and baselines in miniature, on the embedded world, over several seeds.

python experiments/ablation.py [--seeds=[0,1,2]] [--outputs=outputs/ablation]

What several variants share is trained once; what is finished is not done again. Results go to
``<outputs>/ablation.json`` and ``<outputs>/ablation.html``; what a stage prints, to its ``log.txt``.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
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
    workers: int = 2,
    options: list[str] | None = None,
    results: str | None = "docs/results.md",
) -> Path:
    """Train and measure every variant with every seed, then write the tables and the page.

    Args:
        outputs: Folder of all results.
        seeds: Seeds of data, order and sampling; by default 0, 1, 2.
        test_size: Held-out examples of the four multimodal tasks, each judged in both orders.
        voting_size: Of them, those on which MSRL votes, up to 16 times.
        workers: Stages trained at the same time, each in a process that has its share of the cores.
        options: Further options for every stage, such as ``--trainer.max_steps=2``.
        results: A Markdown file in whose ablation section the tables are put; ``null`` for none.

    Returns:
        The place of ``ablation.html``.
    """
    root, seeds = Path(outputs), [0, 1, 2] if seeds is None else seeds
    settings = {"test_size": test_size, "voting_size": voting_size, "options": options or []}
    refuse_other_settings(root, settings, option="--outputs")
    work(list(jobs(root, seeds, options or [], test_size, voting_size)), workers)
    found: dict[str, dict[str, Any]] = {}
    for seed in seeds:
        for name, node in VARIANTS.items():
            lines = (root / f"seed{seed}" / node.folder / "test.jsonl").read_text().splitlines()
            records = [JudgementRecord.from_json(json.loads(line)) for line in lines]
            found.setdefault(name, {})[str(seed)] = summarise(records, seed=seed)
        votes = root / f"seed{seed}" / FULL.folder / "votes.json"
        found.setdefault("voting", {})[str(seed)] = json.loads(votes.read_text())
    write_whole(root / "ablation.json", json.dumps(found, indent=1))
    return publish(root, found, Path(results) if results else None)


def nodes() -> list[Node]:
    """All that is trained, each after the one it starts from."""
    found: dict[Node, None] = {}
    for node in VARIANTS.values():
        chain = [node]
        while (before := chain[-1].after) is not None:
            chain.append(before)
        found.update(dict.fromkeys(reversed(chain)))
    return list(found)


@dataclass(frozen=True)
class Job:
    """A node to train with a seed, and to measure if a variant ends there.

    Attributes:
        folder: Of the seed.
        node: What is trained.
        seed: Of data, order and sampling.
        options: Further ones of the stage.
        test_size: Test scenes to judge; 0 where no variant ends.
        voting_size: Of them, those to vote on.
    """

    folder: Path
    node: Node
    seed: int
    options: tuple[str, ...]
    test_size: int
    voting_size: int

    @property
    def place(self) -> Path:
        """Where all of it goes."""
        return self.folder / self.node.folder

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.place / "log.txt"

    def __str__(self) -> str:
        return f"{self.folder.name}/{self.node.folder}"

    def __call__(self) -> None:
        """Train, then measure; what is there already is not done again."""
        start = checkpoint(self.folder, self.node.after) if self.node.after else "base"
        train(
            self.place,
            self.node.stage,
            self.seed,
            [f"--start_from={start}", *self.node.options, *self.options],
        )
        trained = checkpoint(self.folder, self.node)
        if self.test_size and not (path := self.place / "test.jsonl").is_file():
            judge(path, self.node, trained, self.test_size)
        if self.voting_size and not (path := self.place / "votes.json").is_file():
            vote(path, trained, self.voting_size)


def jobs(
    root: Path, seeds: Sequence[int], options: Sequence[str], test_size: int, voting_size: int
) -> Iterator[Job]:
    """All that is to do."""
    for node, seed in product(nodes(), seeds):
        test = test_size if node in VARIANTS.values() else 0
        votes = voting_size if node == FULL else 0
        yield Job(root / f"seed{seed}", node, seed, tuple(options), test, votes)


def checkpoint(folder: Path, node: Node) -> Path:
    """Of a trained node."""
    path = newest(folder / node.folder, node.stage)
    assert path is not None
    return path


def work(waiting: list[Job], workers: int) -> None:
    """Do all jobs in so many processes, each after the one it starts from."""
    running: dict[Future[None], Job] = {}
    done: set[tuple[Path, Node | None]] = {(job.folder, None) for job in waiting}
    threads = partial(torch.set_num_threads, max(1, (os.cpu_count() or 1) // workers))
    with (
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), threads) as pool,
        tqdm(total=len(waiting), desc="trained and measured", unit="stage") as bar,
    ):
        while waiting or running:
            ready = [job for job in waiting if (job.folder, job.node.after) in done]
            for job in ready[: workers - len(running)]:
                waiting.remove(job)
                running[pool.submit(logged, job)] = job
            bar.set_postfix_str(", ".join(map(str, running.values())))
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                if error := future.exception():
                    pool.shutdown(cancel_futures=True)
                    what = " ".join(str(error).split())
                    raise ValueError(f"{job} failed: {what}; its output: {job.log}") from error
                done.add((job.folder, job.node))
                bar.update()


def logged(job: Job) -> None:
    """Do a job; all that it prints goes to its log."""
    job.place.mkdir(parents=True, exist_ok=True)
    with job.log.open("a") as file:
        os.dup2(file.fileno(), 1)  # the process has no other output
        os.dup2(file.fileno(), 2)
    job()


def judge(path: Path, node: Node, trained: Path, size: int) -> None:
    """Judge the test scenes, in both orders, from pixels."""
    examples = test_examples(list(TASK_TYPES[1:]), size, "test")
    if node.stage == "discriminative":
        records = list(DiscriminativeRM.load(GenerativeRMPolicy("tiny"), trained).judge(examples))
    else:
        records = list(asked(trained, examples, Plan(style="compact", batch_size=32), temperature=0.0))
    write_whole(path, "".join(json.dumps(record.to_json()) + "\n" for record in records))


def vote(path: Path, trained: Path, size: int) -> None:
    """Accuracy of majority votes over the first samples of each question; a tie goes to the first sample."""
    examples = test_examples(list(TASK_TYPES[1:]), size, "test")
    ballots: dict[tuple[str, str], list[Any]] = {}
    for record in asked(
        trained, examples, Plan(style="compact", votes=max(VOTES), batch_size=8), temperature=1.0
    ):
        ballots.setdefault((record.id, record.order), []).append(record)
    scores = {str(k): np.mean([verdict(b[:k]) == b[0].winner for b in ballots.values()]) for k in VOTES}
    write_whole(path, json.dumps({k: float(score) for k, score in scores.items()}))


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
