"""The paper's ablations and baselines in miniature, on the embedded world, over several seeds.

python experiments/ablation.py [--seeds=[0,1,2]] [--outputs=outputs/ablation]

What several variants share is trained once; what is finished is not done again. Results go to
``<outputs>/ablation.json`` and ``<outputs>/ablation.html``; what a stage prints, to its ``log.txt``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from jsonargparse import auto_cli

from experiments.ablation_jobs import Job, Node, work
from experiments.ablation_report import Found, publish
from lit_msrl.cli import run
from lit_msrl.metrics import summarise
from lit_msrl.outputs import refuse_other_settings, write_whole
from lit_msrl.records import JudgementRecord


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
    found: Found = {}
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


def jobs(
    root: Path, seeds: Sequence[int], options: Sequence[str], test_size: int, voting_size: int
) -> Iterator[Job]:
    """All that is to do."""
    for node, seed in product(nodes(), seeds):
        test = test_size if node in VARIANTS.values() else 0
        votes = voting_size if node == FULL else 0
        yield Job(root / f"seed{seed}", node, seed, tuple(options), test, votes)


if __name__ == "__main__":
    run(lambda: auto_cli(ablation, exit_on_error=False))
