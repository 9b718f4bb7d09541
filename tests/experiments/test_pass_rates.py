"""Measuring pass rates: what is written, and that an interrupted run ends in the same file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data_modules import PassRateFilter, World
from experiments import pass_rates as script
from lit_msrl.engines import Sampling
from lit_msrl.evaluation import pass_rates
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import render
from tests.conftest import text_prompt, tiny_internvl
from tests.experiments.made import call, command
from tests.fakes import ScriptedEngine


def measure(path: Path, **options: Any) -> list[dict[str, Any]]:
    defaults = {"samples": 4, "max_completion": 64, "view": "caption", "batch_size": 4}
    script.measure(World(["text"], size=10), str(path), **(defaults | options))
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_share_of_right_verdicts() -> None:
    right, wrong = (f"<think>b</think><answer>{letter}</answer>" for letter in ("A", "B"))
    engine = ScriptedEngine(lambda _: [(right, -1.0), (wrong, -1.0), (right, -1.0), ("<answer>A", -1.0)])
    prompts = [text_prompt("one"), text_prompt("two")]
    found = pass_rates(
        tiny_internvl(), engine, [prompt.example for prompt in prompts], view="caption", style="compact",
        sampling=Sampling(4, 32), seed=7,
    )  # fmt: skip
    labels = [render(prompt.example, style="compact").label for prompt in prompts]
    assert found == [0.5 if label == "A" else 0.25 for label in labels]
    assert engine.calls == [(Sampling(4, 32), 7)]


def test_every_example_has_a_line_and_the_filter_reads_it(tmp_path) -> None:
    rows = measure(tmp_path / "rates.jsonl")
    examples = [row["example"] for row in World(["text"], size=10).dataset()]
    assert [(row["source"], row["id"]) for row in rows] == [(e.source, e.id) for e in examples]
    assert {row["pass_rate"] for row in rows} <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert len({row["pass_rate"] for row in rows}) > 1
    kept = PassRateFilter(World(["text"], size=10), str(tmp_path / "rates.jsonl"))
    assert len(list(kept.dataset())) == sum(0 < row["pass_rate"] < 1 for row in rows)


def test_an_interrupted_run_goes_on_to_the_same_file(tmp_path, monkeypatch) -> None:
    path, asked = tmp_path / "rates.jsonl", []
    whole = measure(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:5]) + lines[5][:9])  # broken off in the second batch
    original = script.pass_rates
    monkeypatch.setattr(script, "pass_rates", lambda *a, **k: asked.append(len(a[2])) or original(*a, **k))
    assert measure(path) == whole
    assert asked == [4, 2]
    assert measure(path) == whole
    assert asked == [4, 2]


def test_rates_measured_otherwise_are_not_mixed_in(tmp_path) -> None:
    measure(tmp_path / "rates.jsonl")
    engine = ScriptedEngine(lambda _: [])
    for changed, message in (
        ({"samples": 2}, "samples 4, not 2"),
        ({"engine": engine}, "engine HFEngine, not ScriptedEngine"),
        ({"view": "visual"}, "view caption, not visual"),
        ({"style": "full"}, "style compact, not full"),
        ({"temperature": 0.5}, "temperature 1.0, not 0.5"),
    ):
        with pytest.raises(ValueError, match=f"holds pass rates with {message}; choose another --output"):
            measure(tmp_path / "rates.jsonl", **changed)


def test_a_gpu_samples_if_there_is_one(tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(GenerativeRMPolicy, "to", lambda self, device: asked.append(device) or self)
    measure(tmp_path / "rates.jsonl", max_completion=1)
    assert asked == ["cuda"]


def test_a_stage_trains_on_what_is_left(tmp_path) -> None:
    rows = measure(tmp_path / "rates.jsonl")
    options = [
        *(
            "--data.train=PassRateFilter",
            f"--data.train.rates={tmp_path / 'rates.jsonl'}",
            "--data.train.max=0.99",
        ),
        "--data.train.source={class_path: World, init_args: {tasks: [text], size: 10}}",
        *("--trainer.limit_val_batches=0", "--data.batch_size=1", "--trainer.max_steps=1"),
    ]
    cli = call("stage1", command("stage1", tmp_path, *options))
    learned = {prompt.example.id for prompt in cli.model.last_rollout.prompts}
    assert learned <= {row["id"] for row in rows if 0 < row["pass_rate"] < 1}
