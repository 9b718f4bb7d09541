"""A run whose server dies: one message, and a checkpoint to go on from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_msrl.checkpoint_io import load
from lit_msrl.policy import EMBEDDED
from tests.experiments.made import REPOSITORY, command
from tests.vllm.served import serve

pytestmark = pytest.mark.slow


def test_a_server_killed_in_the_middle_of_a_run(tmp_path: Path) -> None:
    with serve(EMBEDDED, tmp_path) as server:
        options = ["--model.engine=VLLMServerEngine", f"--model.engine.url={server.url}"]
        options += ["--model.engine.timeout=300", f"--model.engine.folder={tmp_path}"]
        options += [
            "--trainer.max_steps=500",
            "--trainer.limit_val_batches=0",
            "--model.loss.entropy_coef=0.1",
        ]
        options += ["--checkpoint.every_n_train_steps=1", "--trainer.log_every_n_steps=1"]
        run = subprocess.Popen(
            [sys.executable, "experiments/stage3.py", *command("stage3", tmp_path / "outputs", *options)],
            cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        folder = tmp_path / "outputs" / "stage3" / "version_0" / "checkpoints"
        end = time.monotonic() + 500
        try:
            while not (folder / "step_2.ckpt").exists() and run.poll() is None and time.monotonic() < end:
                time.sleep(0.1)
            server.signal(signal.SIGKILL)
            _, said = run.communicate(timeout=500)
        finally:
            run.kill()
    assert run.returncode == 1, said[-3000:]
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said[-3000:]
    assert errors[0].startswith(f"error: vLLM at {server.url} was lost at ")
    assert errors[0].endswith("go on with --ckpt_path=last")
    assert "Traceback" not in said
    assert load(folder / "last.ckpt")["global_step"] >= 2
    assert not list(folder.glob("*.partial"))
    assert not list(tmp_path.rglob("*.safetensors")), "no weights are left in the shared folder"
