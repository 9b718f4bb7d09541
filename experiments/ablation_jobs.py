"""Stages trained and judged beside each other, one process each, what is shared only once."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from experiments.pipeline import MAX_COMPLETION, test_examples, train
from lit_msrl.cli import newest
from lit_msrl.engines import HFEngine
from lit_msrl.evaluation import Plan, examine, load_weights
from lit_msrl.judges import PolicyJudge
from lit_msrl.outputs import write_whole
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.records import JudgementRecord
from lit_msrl.stages import DiscriminativeRM
from lit_msrl.types import TASK_TYPES
from lit_msrl.voting import majority

VOTES = (1, 2, 4, 8, 16)


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
