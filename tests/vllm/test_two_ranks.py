"""Two ranks share a policy in shards, and each has a vLLM with all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")

ROOT = Path(__file__).parents[2]


def test_each_rank_samples_from_the_whole_policy(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.vllm.two_ranks", str(tmp_path / "store")]
    both = [
        subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"RANK": rank, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    outputs = [process.communicate(timeout=600)[0] for process in both]
    assert all(process.returncode == 0 for process in both), "\n".join(outputs)[-4000:]
    assert "rank 0 lora True" in outputs[0]
    assert not any("Traceback" in output for output in outputs), "\n".join(outputs)[-4000:]
