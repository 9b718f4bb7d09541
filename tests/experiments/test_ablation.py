"""The ablation: what is shared is trained once, and what was found is what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import ablation
from experiments.ablation import FULL, VARIANTS
from experiments.ablation_jobs import VOTES, Job, Node, verdict, work
from experiments.ablation_report import END, LABELS, RATIOS, ROWS, START, TEXTS, publish
from lit_msrl.records import JudgementRecord
from tests.experiments.made import UNSEEN


def found() -> dict[str, dict]:
    """Made-up accuracies of two seeds: 60 % and 70 % everywhere, but MSRL's, 80 % and 90 %."""
    table: dict[str, dict] = {
        name: {"0": {"accuracy": 0.6, "n": 8}, "1": {"accuracy": 0.7, "n": 8}} for name in VARIANTS
    }
    table["MSRL"] = {"0": {"accuracy": 0.8, "n": 8}, "1": {"accuracy": 0.9, "n": 8}}
    table["voting"] = {seed: {str(k): 0.75 for k in VOTES} for seed in "01"}
    return table


def test_every_variant_is_trained_differently_and_shares_what_it_can() -> None:
    assert len({json.dumps(node.chain()) for node in VARIANTS.values()}) == len(VARIANTS)
    nodes: dict[str, Node] = {}
    for node in VARIANTS.values():
        step: Node | None = node
        while step is not None:
            assert nodes.setdefault(step.folder, step) == step  # no two have the same folder
            step = step.after
    assert VARIANTS["without stage 3"] == FULL.after
    order = ablation.nodes()
    assert {node.folder for node in order} == nodes.keys()
    assert len(order) == len(nodes) == 43  # of 64 without sharing
    assert all(node.after is None or order.index(node.after) < i for i, node in enumerate(order))


def test_everything_that_is_shown_is_measured() -> None:
    shown = {
        *ROWS,
        *RATIOS.values(),
        *TEXTS.values(),
        *(n for names in LABELS.values() for n in names.values()),
    }
    assert shown <= {*VARIANTS, *(f"voting@{k}" for k in VOTES)}


def test_tables_say_mean_and_deviation(tmp_path: Path) -> None:
    results = tmp_path / "results.md"
    results.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    page = publish(tmp_path, found(), results).read_text()
    text = results.read_text()
    assert text.startswith(f"before\n{START}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "| MSRL | 85.0 ± 7.1 | 75.9 |" in text  # the deviation of 80 and 90 is 7.07
    assert "| without stage 1 | 65.0 ± 7.1 | 68.8 |" in text
    assert "| MSRL at temperature 1 | 75.0 ± 0.0 |" in text
    assert page.count("<circle") == 2 * (len(TEXTS) + 3 * len(LABELS) + len(VOTES))
    assert "85.0 ± 7.1" in page


@pytest.mark.parametrize(
    ("votes", "expected"), [((1, 2, 2), 2), ((1, 2), 1), ((None, 2), 2), ((None,), None)]
)
def test_a_tie_goes_to_the_first_sample(votes, expected) -> None:
    ballot = [JudgementRecord("e", "text", "AB", i, 1, vote, True, None, "") for i, vote in enumerate(votes)]
    assert verdict(ballot) == expected


@pytest.mark.slow
def test_a_failed_stage_says_where_to_look(tmp_path: Path) -> None:
    job = Job(tmp_path / "seed0", Node("stage1", None, ("--data.batch_size=none",)), 0, (), 0, 0)
    with pytest.raises(ValueError, match=r"seed0/stage1-\w+ failed: .*output: .*log\.txt"):
        work([job], workers=1)


@pytest.mark.slow
def test_a_small_ablation_from_start_to_page_and_again(tmp_path: Path, monkeypatch) -> None:
    """Three variants of which two share a stage; the second run trains and judges nothing."""
    first = Node("stage1_sft", None, ("--data.batch_size=2", "--model.max_completion=8"))
    small = {
        "MSRL": Node(
            "stage1", first, ("--data.batch_size=2", "--model.group_size=2", "--model.max_completion=8")
        ),
        "without stage 1": first,
        "discriminative baseline": Node("discriminative", None, ("--data.batch_size=2",)),
    }
    monkeypatch.setattr(ablation, "VARIANTS", small)
    monkeypatch.setattr(ablation, "FULL", small["MSRL"])
    pages = []
    monkeypatch.setattr(ablation, "publish", lambda root, table, results: pages.append(table) or root)
    options = ["--trainer.max_steps=2", "--trainer.enable_progress_bar=false", *UNSEEN]
    for _ in range(2):
        ablation.ablation(str(tmp_path), [0], test_size=4, voting_size=4, options=options, results=None)
    logs = {path.parent.name: path.read_text() for path in tmp_path.glob("seed0/*/log.txt")}
    assert set(logs) == {node.folder for node in (first, *small.values())}  # what is shared, once
    assert [log.count("=== ") for log in logs.values()] == [1, 1, 1]
    assert [log.count("done already") for log in logs.values()] == [1, 1, 1]  # all of the second run
    assert pages[0] == pages[1] == json.loads((tmp_path / "ablation.json").read_text())
    assert set(pages[0]) == {*small, "voting"}
    with pytest.raises(ValueError, match="test_size 4 instead of 5"):
        ablation.ablation(str(tmp_path), [0], test_size=5, voting_size=4, options=options, results=None)
