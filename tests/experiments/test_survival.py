"""A run killed at any moment and taken up again ends as one that was never interrupted, bit for bit."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from experiments.pipeline import curves
from lit_msrl.cli import newest
from tests.experiments.made import command
from tests.experiments.survivor import differences, final, run

LENGTH = ["--trainer.max_steps=6", "--trainer.val_check_interval=3", "--data.validation.size=4"]
OPTIONS = {
    "stage2": [
        "--model.loss.kl_coef=0.1", "--model.loss.kl_target=0.01", "--data.replay_ratio=[4,1]",
        "--model.policy.lora={rank: 4}",
    ],
    "cmkd": ["--data.train.size=10"],  # an epoch ends after step 5
}  # fmt: skip
Whole = tuple[str, Path, float]
PLACES = {  # at which pass; spread over the run
    "sampling": 40,
    "learning": 4,
    "descending": 5,
    "validating": 1,
    "flushing a checkpoint": 3,
    "renaming a checkpoint": 3,
}


def args(stage: str, folder: Path) -> list[str]:
    options = ["--checkpoint.every_n_train_steps=2", *LENGTH, *OPTIONS[stage]]
    return command(stage, folder / "outputs", *options, "--ckpt_path=last")


@pytest.fixture(scope="module", params=["stage2", "cmkd"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A stage, the folder of its uninterrupted run, and the seconds it took."""
    stage, folder = request.param, tmp_path_factory.mktemp("whole")
    start = time.perf_counter()
    assert run(stage, args(stage, folder), folder / "log") == 0, (folder / "log").read_text()
    return stage, folder, time.perf_counter() - start


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_killed_at_a_place(place: str, whole: Whole, tmp_path: Path):
    stage, reference, _ = whole
    command_line, log = args(stage, tmp_path), tmp_path / "log"
    killed = run(stage, command_line, log, place=place, passes=PLACES[place])
    assert killed == -signal.SIGKILL, log.read_text()
    assert run(stage, command_line, log) == 0, log.read_text()
    assert not differences(final(reference / "outputs", stage), final(tmp_path / "outputs", stage))


@pytest.mark.slow
def test_killed_at_random_moments_over_and_over(whole: Whole, tmp_path: Path):
    stage, reference, seconds = whole
    command_line, log, rng = args(stage, tmp_path), tmp_path / "log", random.Random(0)
    for _ in range(4):
        run(stage, command_line, log, place="seconds", passes=rng.uniform(0.2, 0.9) * seconds)
    assert run(stage, command_line, log) == 0, log.read_text()
    assert not differences(final(reference / "outputs", stage), final(tmp_path / "outputs", stage))


@pytest.mark.slow
@pytest.mark.parametrize(("place", "passes", "step"), [("descending", 3, 3), ("validating", 1, 3)])
def test_asked_to_stop_it_saves_first(place: str, passes: int, step: int, whole: Whole, tmp_path: Path):
    """The step under way is finished and saved, though none is due; nothing is drawn or logged twice."""
    stage, reference, _ = whole
    command_line, log = args(stage, tmp_path), tmp_path / "log"
    stopped = run(stage, command_line, log, place=place, passes=passes, number=signal.SIGTERM)
    assert stopped == 128 + signal.SIGTERM, log.read_text()
    assert "run the same command with --ckpt_path=last" in log.read_text()
    assert final(tmp_path / "outputs", stage)["global_step"] == step
    assert run(stage, command_line, log) == 0, log.read_text()
    a, b = final(reference / "outputs", stage), final(tmp_path / "outputs", stage)
    found = [line for line in differences(a, b) if "/epoch_loop.val_loop" not in line]  # a validation cut off
    assert not found
    logged, again = (curves(folder / "outputs", stage) for folder in (reference, tmp_path))
    name = "sft/loss" if stage == "cmkd" else "rlvr/loss"
    assert again[name] == logged[name]


@pytest.mark.slow
def test_a_full_run_leaves_its_last_checkpoints(whole: Whole):
    stage, folder, _ = whole
    last = newest(folder / "outputs", stage)
    assert last is not None
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", "step_4.ckpt", "step_6.ckpt"]
    assert last.resolve().name == "step_6.ckpt"
    text = (folder / "log").read_text()
    assert "No checkpoint yet: starting anew." in text
    assert "weights_only" not in text
