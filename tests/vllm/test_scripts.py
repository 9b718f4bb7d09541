"""The scripts that sample without training, with vLLM: they write what they write without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from data_modules import World
from experiments import evaluate, pass_rates
from lit_msrl.cli import run
from lit_msrl.engines import RolloutEngine, VLLMEngine
from lit_msrl.policy import GenerativeRMPolicy
from tests.benchmarks.made import JUDGEBENCH_ROWS
from tests.experiments.captioned import records, rows_of, write
from tests.experiments.made import write_rows

VLLM = ["--engine=VLLMEngine", "--engine.timeout=600"]


def test_a_benchmark_is_judged_alike(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", *JUDGEBENCH_ROWS)
    common = ["--benchmark=judgebench", f"--data={data}", "--model=tiny", "--max_completion=24"]
    for name, engine in (("plain", []), ("vllm", VLLM)):
        words = [*common, *engine, "--max_length=1024", f"--out={tmp_path / name}"]
        run(lambda words=words: evaluate.main(words))
    plain, sampled = (records(tmp_path / name / "records.jsonl") for name in ("plain", "vllm"))
    assert [record["text"] for record in sampled] == [record["text"] for record in plain]
    assert len({record["text"] for record in plain}) > 1


def rates(path: Path, engine: RolloutEngine | None = None, **options: Any) -> dict[str, float]:
    """Pass rates of eight drawn texts, by id."""
    policy = GenerativeRMPolicy("tiny", max_length=1024)
    fixed: dict[str, Any] = {"max_completion": 64, "view": "caption", "batch_size": 8}
    pass_rates.measure(World(["text"], size=8), str(path), policy, engine, **fixed, **options)
    return {record["id"]: record["pass_rate"] for record in records(path)}


def test_pass_rates_are_those_without_it(tmp_path: Path) -> None:
    vllm = VLLMEngine(timeout=600)
    greedy = {"samples": 1, "temperature": 0.0}
    plain = rates(tmp_path / "plain.jsonl", **greedy)
    assert rates(tmp_path / "vllm.jsonl", vllm, **greedy) == plain
    assert set(plain.values()) == {0.0, 1.0}
    drawn = rates(tmp_path / "drawn.jsonl", vllm, samples=4)
    assert drawn.keys() == plain.keys()
    assert set(drawn.values()) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert len(set(drawn.values())) > 1


def test_pictures_are_captioned_alike(tmp_path: Path) -> None:
    data, few = rows_of(tmp_path, 4), ["--max_tokens=24", "--max_length=1024"]
    assert write(tmp_path / "plain.jsonl", data, None, *few) == 0
    assert write(tmp_path / "vllm.jsonl", data, None, *few, *VLLM) == 0
    plain, sampled = (
        {record["media"]: record["caption"] for record in records(tmp_path / name)}
        for name in ("plain.jsonl", "vllm.jsonl")
    )
    assert sampled == plain
    assert len(plain) == 4
