"""When checkpoints are written, which are kept, and what a signal does."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import lightning as L
import pytest

from lit_msrl.callbacks import Checkpoints
from tests.callbacks.test_non_finite import data, imitating
from tests.stages.test_rlvr import trainer


class Sender(L.Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


def fit(folder: Path, checkpoints: Checkpoints, *callbacks: L.Callback, epoch: int = 16) -> list[str]:
    """The checkpoints a run leaves."""
    options = {"max_steps": 7, "limit_train_batches": epoch, "enable_checkpointing": True}
    run = trainer(folder, callbacks=[checkpoints, *callbacks], **options)
    try:
        run.fit(imitating(), data())
    finally:
        left = sorted(path.name for path in (folder / "checkpoints").glob("*"))
    return left


def test_the_newest_are_kept_and_the_last_step_is_saved(tmp_path: Path) -> None:
    assert fit(tmp_path, Checkpoints(2, keep=3)) == ["last.ckpt", "step_4.ckpt", "step_6.ckpt", "step_7.ckpt"]
    assert os.readlink(tmp_path / "checkpoints" / "last.ckpt") == "step_7.ckpt"


def test_not_at_the_end_of_an_epoch_but_a_step_later(tmp_path: Path) -> None:
    assert fit(tmp_path, Checkpoints(3, keep=9), epoch=3) == ["last.ckpt", "step_4.ckpt", "step_7.ckpt"]


@pytest.mark.parametrize("options", [{"every_n_train_steps": 0}, {"keep": 0}])
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Checkpoints(**options)


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGTERM, False), (signal.SIGUSR1, True)])
def test_a_signal_waits_for_the_step(number: int, requeued: bool, tmp_path: Path, monkeypatch) -> None:
    """And SLURM is asked to queue the job again only when it said that time is up."""
    asked: list[list[str]] = []
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr("subprocess.run", lambda args, check: asked.append(args))
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, Checkpoints(100), Sender(number, step=2))
    assert stop.value.code == 128 + number
    assert os.readlink(tmp_path / "checkpoints" / "last.ckpt") == "step_3.ckpt"
    assert asked == ([["scontrol", "requeue", "7"]] if requeued else [])
    assert signal.getsignal(number) == before
