"""The scripts of the stages, run: what they learn from, what they log, what they leave."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lit_msrl.cli
from lit_msrl.checkpoint_io import WholeCheckpoints
from lit_msrl.curves import read_curves
from lit_msrl.evaluation import load_weights
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import Judgement
from tests.experiments.made import REALDATA, REPOSITORY, RL, SEEN, SHORT, STAGES, UNSEEN, call, command

SHARES = ("accuracy/", "reward/accuracy", "reward/format", "validation/", "rollout/zero", "rollout/truncated")
PAIRS = {
    "judgebench": "judgebench/dataset=judgebench,response_model=claude-3-5-sonnet-20240620.jsonl",
    "sharegpt_ranking": "llamafactory_demo/dpo_en_demo_sub120.json",
    "videogen_rewardbench": "videogen_pairs/example.csv",
}
needs_realdata = pytest.mark.skipif(not REALDATA.is_dir(), reason="the real files are not here")


@pytest.fixture
def agreeing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the judge writes about captions, CMKD reads a well-formed judgement."""
    verdict = Judgement(True, "A", None, {"think": "a red ball", "answer": "A"})
    monkeypatch.setattr("lit_msrl.stages.cmkd.parse", lambda text, tags: verdict)


def newest(outputs: Path, stage: str) -> Path:
    found = lit_msrl.cli.newest(outputs, stage)
    assert found is not None
    return found


def content(checkpoint: Path) -> dict:
    return torch.load(checkpoint, map_location="cpu", weights_only=True)


def assert_sane(curves: dict[str, tuple], steps: int) -> None:
    """Everything is finite, shares are shares, and there is a loss for every step."""
    assert all(math.isfinite(value) for _, values in curves.values() for value in values)
    shares = [value for tag, (_, values) in curves.items() if tag.startswith(SHARES) for value in values]
    assert all(0 <= value <= 1 for value in shares)
    losses = [tag for tag in curves if tag.endswith("/loss")]
    assert len(losses) == 1
    assert list(curves[losses[0]][0]) == list(range(steps))


@pytest.mark.parametrize("stage", STAGES)
def test_two_steps_of_a_stage(stage, tmp_path: Path, agreeing):
    cli = call(stage, command(stage, tmp_path, *SEEN))
    run = tmp_path / stage / "version_0"
    curves = read_curves(run)
    assert_sane(curves, steps=2)
    assert "validation/accuracy" in curves
    assert {"lr-AdamW/language"} <= curves.keys() or "lr-AdamW" in curves
    assert ("reward/total" in curves) == (stage in RL)
    assert (run / "config.yaml").is_file()
    assert sorted(path.name for path in run.glob("checkpoints/*")) == ["last.ckpt", "step_2.ckpt"]
    checkpoint = content(run / "checkpoints" / "last.ckpt")
    assert (checkpoint["stage"], checkpoint["global_step"]) == (stage, 2)
    fresh = GenerativeRMPolicy("tiny")
    assert load_weights(fresh, run / "checkpoints" / "last.ckpt") == stage
    trained = cli.model.policy.state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in fresh.state_dict().items())


def test_the_last_steps_are_in_the_last_checkpoint(tmp_path: Path):
    options = ["--trainer.max_steps=3", "--checkpoint.every_n_train_steps=2", *UNSEEN]
    call("stage1_sft", command("stage1_sft", tmp_path, *options))
    assert content(newest(tmp_path, "stage1_sft"))["global_step"] == 3


def test_a_checkpoint_is_due_by_steps_and_written_once(tmp_path: Path, monkeypatch):
    saved: list[int] = []
    original = WholeCheckpoints.save_checkpoint

    def noting(self, checkpoint, path, storage_options=None):
        saved.append(checkpoint["global_step"])
        original(self, checkpoint, path, storage_options)

    monkeypatch.setattr(WholeCheckpoints, "save_checkpoint", noting)
    options = ["--trainer.max_steps=4", "--checkpoint.every_n_train_steps=2", *UNSEEN]
    call("stage1_sft", command("stage1_sft", tmp_path, *options))
    assert saved == [2, 4]


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    options = ["--trainer.max_steps=4", "--model.cosine=true", *UNSEEN]
    call("stage1_sft", command("stage1_sft", whole, *options))
    stop = ["--trainer.limit_train_batches=2", "--trainer.max_epochs=1"]
    call("stage1_sft", command("stage1_sft", halves, *options, *stop))
    first = newest(halves, "stage1_sft")
    assert content(first)["global_step"] == 2
    call("stage1_sft", command("stage1_sft", halves, *options, f"--ckpt_path={first}"))
    a, b = (content(newest(folder, "stage1_sft"))["state_dict"] for folder in (whole, halves))
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def test_auto_starts_from_the_newest_checkpoint_of_the_stage_before(tmp_path: Path, capsys):
    call("stage1_sft", command("stage1_sft", tmp_path, "--trainer.max_steps=1", *UNSEEN))
    first = newest(tmp_path, "stage1_sft")
    second = tmp_path / "stage1_sft" / "version_10" / "checkpoints" / "last.ckpt"
    second.parent.mkdir(parents=True)
    checkpoint = content(first)
    marked = next(name for name, tensor in checkpoint["state_dict"].items() if tensor.is_floating_point())
    checkpoint["state_dict"][marked] += 1.0
    torch.save(checkpoint, second)
    os.utime(first, (1, 1))
    still = ["--model.learning_rates={language: 0.0}", "--trainer.max_steps=1", *UNSEEN]
    cli = call("stage1", command("stage1", tmp_path, "--start_from=auto", *still))
    assert f"stage1 starts from {second} (stage stage1_sft)." in capsys.readouterr().out
    started = cli.model.state_dict()
    assert all(torch.equal(tensor, started[name]) for name, tensor in checkpoint["state_dict"].items())


def test_a_named_checkpoint_of_any_stage_is_a_start(tmp_path: Path, capsys):
    call("baseline_sft", command("baseline_sft", tmp_path, "--trainer.max_steps=1", *UNSEEN))
    path = newest(tmp_path, "baseline_sft")
    call("stage1", command("stage1", tmp_path, f"--start_from={path}", "--trainer.max_steps=1", *UNSEEN))
    assert f"stage1 starts from {path} (stage baseline_sft)." in capsys.readouterr().out


@pytest.mark.slow
def test_a_missing_predecessor_is_made_and_said_so(tmp_path: Path, monkeypatch, capfd):
    made: list[list[str]] = []
    original = subprocess.run

    def on_little(args: list[str], **options):
        made.append(args)
        return original([*args, *SHORT, "--data.batch_size=2", *UNSEEN], **options)

    monkeypatch.setattr(lit_msrl.cli.subprocess, "run", on_little)
    call("stage1", command("stage1", tmp_path, "--start_from=auto", *UNSEEN))
    script = str(REPOSITORY / "experiments" / "stage1_sft.py")
    ((*start, seed, policy),) = [args for args in made if script in args]
    assert start == [sys.executable, script, "fit", f"--outputs={tmp_path}"]
    assert seed == "--seed_everything=0"
    assert policy.startswith("--model.policy={")
    out = capfd.readouterr().out
    said = ["No checkpoint of stage1_sft under", "stage1_sft starts from the base", "stage1 starts from"]
    assert [out.index(line) for line in said] == sorted(out.index(line) for line in said)
    assert newest(tmp_path, "stage1").is_file()


def test_validation_alone(tmp_path: Path, capsys):
    call("stage1", ["validate", f"--outputs={tmp_path}", *SHORT, "--data.validation.size=4"])
    assert "validation/accuracy" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.ckpt"))


def real(adapter: str, limit: int) -> list[str]:
    path = REALDATA / PAIRS[adapter]
    return ["--data.train=Rows", f"--data.train.path={path}", f"--data.train.adapter={adapter}",
            f"--data.train.limit={limit}", *UNSEEN]  # fmt: skip


@needs_realdata
@pytest.mark.parametrize("adapter", ["judgebench", "sharegpt_ranking"])
def test_real_text(adapter, tmp_path: Path):
    options = [
        *real(adapter, 2),
        "--data.batch_size=1",
        "--model.policy.max_length=8192",
        "--model.style=full",
    ]
    call("stage1", command("stage1", tmp_path, *options))
    assert_sane(read_curves(tmp_path / "stage1" / "version_0"), steps=2)


@needs_realdata
def test_real_text_that_is_too_long_is_refused_by_name(tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as stop:
        call("stage1", command("stage1", tmp_path, *real("judgebench", 4)))
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 1
    assert "4 were left out, whose prompts are too long" in line


@needs_realdata
def test_real_clips(tmp_path: Path):
    options = [*real("videogen_rewardbench", 8), "--data.train.options={label: VQ}"]  # half of them are ties
    call("stage3", command("stage3", tmp_path, *options))
    curves = read_curves(tmp_path / "stage3" / "version_0")
    assert_sane(curves, steps=2)
    assert "accuracy/video_generation" in curves
