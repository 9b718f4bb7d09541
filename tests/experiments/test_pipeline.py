"""The pipeline ends in a report, interrupted or not in the same one, and does nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

import experiments.pipeline
from experiments.pipeline import ARMS, curves, pipeline
from lit_msrl.cli import newest
from lit_msrl.engines import HFEngine
from lit_msrl.evaluation import judge
from lit_msrl.prompts import Judgement
from lit_msrl.rewards import RewardSum
from lit_msrl.stages import RLVRModule
from lit_msrl.stages.sft import SFTModule
from lit_msrl.types import TASK_TYPES
from tests.experiments.made import REPOSITORY

OPTIONS = [
    "--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.enable_progress_bar=false",
    "--checkpoint.every_n_train_steps=1", "--model.max_completion=8", "--data.batch_size=5",
    "--data.train.size=10", "--data.validation.size=4",
]  # fmt: skip
STAGES = [name for names in ARMS.values() for name in names]


def run(folder: Path) -> Path:
    return pipeline(str(folder), test_size=8, ladder_size=4, options=OPTIONS)


@pytest.fixture(scope="module")
def quick():
    """Short judgements, of which CMKD keeps all, and rewards that leave something to learn in every step."""
    verdict = Judgement(True, "A", None, {"think": "a red ball", "answer": "A"})
    score = RewardSum.__call__

    def uneven(self, judgements, prompts):
        scores = score(self, judgements, prompts)
        return scores._replace(total=torch.arange(len(judgements), dtype=torch.float32).remainder(3))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments.pipeline, "judge", lambda *a, **k: judge(*a, **(k | {"max_completion": 8})))
        patch.setattr("lit_msrl.stages.cmkd.parse", lambda text, tags: verdict)
        patch.setattr(RewardSum, "__call__", uneven)
        yield patch


@pytest.fixture(scope="module")
def done(quick, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run."""
    folder = tmp_path_factory.mktemp("whole") / "demo"
    assert run(folder) == folder / "report.html"
    return folder


def weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    path = newest(folder, stage)
    assert path is not None
    return torch.load(path, weights_only=True)["state_dict"]


def test_evaluations_need_no_other_vllm_than_the_stages(monkeypatch: pytest.MonkeyPatch):
    configs = [REPOSITORY / "experiments" / "configs" / f"{stage}.yaml" for stage in STAGES]
    stages = {
        yaml.safe_load(file.read_text())["model"]["policy"]["init_args"]["max_length"] for file in configs
    }
    monkeypatch.setattr(experiments.pipeline, "judge", lambda policy, *a, **k: policy.max_length)
    options = {"split": "validation", "both_orders": False, "title": ""}
    evaluation = experiments.pipeline.verdicts(None, ["text"], "caption", 1, HFEngine(), **options)  # type: ignore[arg-type]
    assert stages == {1024}
    assert evaluation == 1024


@pytest.mark.slow
def test_the_report_has_what_was_promised(done: Path):
    report = json.loads((done / "report.json").read_text())
    assert set(report["arms"]) == {"base", "generative_baseline", "msrl"}
    for arm in report["arms"].values():
        low, high = arm["ci95"]
        assert 0 <= low <= arm["accuracy"] <= high <= 1
        assert set(arm["per_task"]) == set(TASK_TYPES[1:])
        assert {"swap_consistency", "parse_failures"} <= arm.keys()
    assert {"msrl_minus_baseline", "p_value"} <= report["comparison"].keys()
    assert [stage["name"] for stage in report["stages"]] == ["base", *STAGES]
    for stage in report["stages"]:
        assert set(stage["accuracy_after"]) == {"text", "caption", "visual"}
    assert all(stage["steps"] == 2 and stage["seconds"] > 0 for stage in report["stages"][1:])
    assert report["seed"] == 0
    assert report["seconds"] == pytest.approx(sum(stage["seconds"] for stage in report["stages"]))
    assert {"torch", "lightning", "transformers", "python"} <= report["versions"].keys()


@pytest.mark.slow
def test_the_page_is_whole_and_shows_every_stages_curves(done: Path):
    page = (done / "report.html").read_text()
    assert page.rstrip().endswith("</html>")
    assert all(len(curves(done, stage)["epoch"][0]) == 2 for stage in STAGES)
    assert "rlvr/loss" in page
    assert "sft/loss" in page
    assert not [path for path in done.rglob("*") if path.name.endswith(".partial")]


@pytest.mark.slow
def test_every_stage_learned_from_the_one_before(done: Path):
    for names in ARMS.values():
        for before, after in zip(names, names[1:], strict=False):
            a, b = weights(done, before), weights(done, after)
            assert any(not torch.equal(tensor, b[name]) for name, tensor in a.items()), after


@pytest.mark.slow
def test_a_second_call_does_nothing_again(done: Path, quick, capsys):
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*.ckpt")}

    def refuse(*args, **options):
        raise AssertionError("something is done twice")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments.pipeline, "judge", refuse)
        patch.setattr("lightning.pytorch.Trainer.fit", refuse)
        report = (done / "report.json").read_text()
        run(done)
    assert (done / "report.json").read_text() == report
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*.ckpt")} == before
    assert capsys.readouterr().out.count("done already") == len(STAGES)


class Interruptions:
    """Ctrl-C, once at each of these places."""

    def __init__(self, patch: pytest.MonkeyPatch, *places: object) -> None:
        self.left = set(places)
        for module in (RLVRModule, SFTModule):
            patch.setattr(module, "training_step", self.wrapped(module.training_step))
        patch.setattr(experiments.pipeline, "judge", self.judge(experiments.pipeline.judge))

    def pass_by(self, place: object) -> None:
        if place in self.left:
            self.left.remove(place)
            raise KeyboardInterrupt

    def wrapped(self, step):
        def training_step(module, batch, batch_idx):
            self.pass_by((module.name, module.trainer.global_step))
            return step(module, batch, batch_idx)

        return training_step

    def judge(self, original):
        def judge(*args, title, **options):
            self.pass_by(title)
            return original(*args, title=title, **options)

        return judge


@pytest.mark.slow
def test_an_interrupted_run_ends_as_an_uninterrupted_one(done: Path, quick, tmp_path: Path):
    places = [
        ("stage1_sft", 1),
        ("stage1", 0),
        ("stage1", 1),
        ("cmkd", 1),
        "after cmkd: visual",
        ("stage3", 1),
        "test: msrl",
    ]
    calls = 0
    with pytest.MonkeyPatch.context() as patch:
        interruptions = Interruptions(patch, *places)
        while interruptions.left:
            with pytest.raises((KeyboardInterrupt, SystemExit)):
                run(tmp_path / "demo")
            calls += 1
        run(tmp_path / "demo")
    assert calls == len(places)
    for stage in STAGES:
        whole, parts = weights(done, stage), weights(tmp_path / "demo", stage)
        assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items()), stage
        assert curves(tmp_path / "demo", stage)["epoch"][0] == curves(done, stage)["epoch"][0]
    files = sorted(path.relative_to(done) for path in (done / "evaluations").iterdir())
    assert len(files) == 3 + 1 + len(STAGES)
    assert all((tmp_path / "demo" / file).read_bytes() == (done / file).read_bytes() for file in files)
    a, b = (json.loads((folder / "report.json").read_text()) for folder in (done, tmp_path / "demo"))
    assert (a["arms"], a["comparison"]) == (b["arms"], b["comparison"])


def test_another_run_in_the_same_folder_is_refused(tmp_path: Path, monkeypatch):
    def stop(*args, **options):
        raise InterruptedError

    monkeypatch.setattr(experiments.pipeline, "ladder", stop)
    with pytest.raises(InterruptedError):
        pipeline(str(tmp_path), seed=1)
    with pytest.raises(InterruptedError):
        pipeline(str(tmp_path), seed=1)
    with pytest.raises(ValueError, match="holds a run with .*choose another --outputs"):
        pipeline(str(tmp_path), seed=2)
    with pytest.raises(ValueError, match="holds a run with"):
        pipeline(str(tmp_path), seed=1, options=["--trainer.max_steps=2"])
