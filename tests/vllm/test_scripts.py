"""The scripts that sample without training, with vLLM: they write what they write without it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm")

from experiments import evaluate
from lit_msrl.cli import run
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
