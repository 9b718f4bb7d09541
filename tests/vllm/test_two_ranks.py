"""Two ranks share a policy in shards; each has a vLLM with all of it, or both run or ask the same one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from lit_msrl.curves import read_curves
from lit_msrl.engines import VLLMEngine
from tests.scale.test_scripts import script
from tests.vllm.made import PROMPTS, draw, model
from tests.vllm.served import Served

ROOT = Path(__file__).parents[2]


def draw_on_both(store: Path, *where: str) -> None:
    """Run ``two_ranks.py`` twice, at the same time."""
    command = [sys.executable, "-m", "tests.vllm.two_ranks", str(store), *where]
    both = [
        subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"RANK": rank, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=600)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert all(process.returncode == 0 for process in both), "\n".join(outputs)[-4000:]
    assert "rank 0 lora True" in outputs[0]
    assert not any("Traceback" in output for output in outputs), "\n".join(outputs)[-4000:]


@pytest.mark.parametrize("tensor_parallel", ["1", "2"])
def test_each_rank_samples_from_the_whole_policy(tmp_path: Path, tensor_parallel: str) -> None:
    draw_on_both(tmp_path / "store", tensor_parallel)


def test_two_ranks_share_a_server(served: Served, tmp_path: Path) -> None:
    draw_on_both(tmp_path / "store", served.url, str(served.model))


def test_a_stage_on_two_processes_that_run_one_vllm(tmp_path: Path) -> None:
    options = ["--model.engine=VLLMEngine", "--model.engine.tensor_parallel=2", "--model.engine.timeout=600"]
    options += ["--trainer.precision=32-true", "--trainer.limit_val_batches=1.0", "--data.validation.size=5"]
    options += ["--trainer.val_check_interval=2", "--data.train.size=8", "--trainer.log_every_n_steps=1"]
    done = script("stage3", "ddp", tmp_path, "--start_from=base", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    curves = read_curves(tmp_path / "stage3" / "version_0")
    assert len(curves["rlvr/gradient_norm"][0]) == 2
    assert max(abs(value) for value in curves["sampler/kl"][1]) < 1e-8
    assert "validation/accuracy" in curves


def test_so_many_devices_must_be_there() -> None:
    with pytest.raises(ValueError, match="tensor_parallel=2 does not divide the 1 processes of this run"):
        draw(VLLMEngine(tensor_parallel=2), model(), PROMPTS[:1])
