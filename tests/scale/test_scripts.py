"""The trainer configurations for many devices, through a stage's own script, on two CPU processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from experiments.export import export, policy_of
from lit_msrl.curves import read_curves
from lit_msrl.evaluation import load_weights
from lit_msrl.policy import GenerativeRMPolicy
from tests.experiments.made import REPOSITORY, SHORT, UNSEEN

pytestmark = pytest.mark.slow
SMALL = ["--data.batch_size=2", "--model.group_size=2", "--trainer.accelerator=cpu", "--trainer.devices=2"]
SMALL += ["--model.loss.entropy_coef=0.1"]  # something to learn, whatever is written


def script(stage: str, trainer: str, outputs: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A stage, as one types it; it starts its second process itself."""
    config = f"experiments/configs/trainer/{trainer}.yaml"
    command = [sys.executable, f"experiments/{stage}.py", "fit", f"--config={config}", f"--outputs={outputs}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [*command, *SHORT, *UNSEEN, *SMALL, *options],
        env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_stage_3_sharded_resumed_and_exported(tmp_path: Path) -> None:
    done = script("stage3", "fsdp", tmp_path, "--start_from=base")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Trained parts: language, projector, vision" in done.stderr + done.stdout
    run = tmp_path / "stage3" / "version_0"
    assert [path.name for path in tmp_path.glob("stage3/*")] == ["version_0"]  # one folder for both processes
    assert len(read_curves(run)["rlvr/gradient_norm"][0]) == 2
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert checkpoint.is_dir()
    policy, _ = policy_of(yaml.safe_load((run / "config.yaml").read_text()))
    assert load_weights(policy, checkpoint) == "stage3"
    plain = GenerativeRMPolicy(str(export(str(run), str(tmp_path / "exported"))))
    for (name, expected), found in zip(policy.named_parameters(), plain.parameters(), strict=True):
        assert found.equal(expected), name
    more = script("stage3", "fsdp", tmp_path, f"--ckpt_path={checkpoint}", "--trainer.max_steps=3")
    assert more.returncode == 0, more.stderr[-3000:]
    after, _ = policy_of(yaml.safe_load((run / "config.yaml").read_text()))
    load_weights(after, tmp_path / "stage3" / "version_1" / "checkpoints" / "last.ckpt")
    moved = [(a - b).abs().max() for a, b in zip(after.parameters(), policy.parameters(), strict=True)]
    assert 0 < max(moved) < 0.01
    assert torch.stack(moved).isfinite().all()


def test_with_ddp_a_missing_predecessor_is_not_made(tmp_path: Path) -> None:
    done = script("stage3", "ddp", tmp_path)
    assert done.returncode == 1
    assert f"error: no checkpoint of cmkd under {tmp_path}/, and on several devices it is not" in done.stderr
    assert not list(tmp_path.iterdir())
