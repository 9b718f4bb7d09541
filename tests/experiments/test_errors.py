"""What goes wrong is said in one line, the exit code tells, and nothing is left half-written."""

from __future__ import annotations

import errno
import io
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from lit_msrl.checkpoint_io import WholeCheckpoints
from tests.experiments.made import REPOSITORY, SHORT, UNSEEN, call, command, write_rows

TEXT = {"prompt": "which is red?", "candidate_1": "the ball", "candidate_2": "the sky", "winner": 1}
PICTURE = {**TEXT, "task_type": "image understanding", "image": "picture.png"}
CLIP = {**TEXT, "task_type": "video understanding", "video": "clip.mp4"}


def complaint(stage: str, args: list[str], outputs: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a run that must fail, and that leaves no checkpoint it has not finished."""
    with pytest.raises(SystemExit) as stop:
        call(stage, args)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert stop.value.code == 1
    assert lines[-1].startswith("error: ")
    assert sum("error:" in line for line in lines) == 1
    assert not any("Traceback" in line for line in lines)
    assert not list(outputs.rglob("*.partial"))
    for path in outputs.rglob("last.ckpt"):
        torch.load(path, weights_only=True)
    return lines[-1]


def rows(path: str) -> list[str]:
    return ["--data.train=Rows", f"--data.train.path={path}", *UNSEEN]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of one step of stage 1's cold start."""
    call("stage1_sft", command("stage1_sft", tmp_path / "before", "--trainer.max_steps=1", *UNSEEN))
    return tmp_path / "before" / "stage1_sft" / "version_0" / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"winner": None}, "'winner'"),
        ({"winner": "A"}, "'winner'"),
        ({"task_type": "smell"}, "'task_type'"),
        ({"candidate_2": None}, "'candidate_2'"),
        ({"task_type": "image understanding", "caption": "a red ball"}, "not text"),
    ],
)
def test_a_row_that_does_not_fit(change, said, tmp_path: Path, capsys):
    outputs = tmp_path / "outputs"
    row = {name: value for name, value in (TEXT | change).items() if value is not None}
    path = write_rows(tmp_path / "mine.jsonl", TEXT, row)
    line = complaint("stage1", command("stage1", outputs, *rows(path)), outputs, capsys)
    assert said in line
    assert f"{path} row 2" in line or "example '2'" in line
    assert not list(outputs.rglob("*.ckpt"))


@pytest.mark.parametrize("option", ["--model.top_p=0.9", "--model.top_k=20"])
def test_a_correction_of_truncated_sampling_is_refused_with_the_reason(option, tmp_path: Path, capsys):
    args = command("stage1", tmp_path, "--model.loss.correction=token_truncate", option, *UNSEEN)
    line = complaint("stage1", args, tmp_path, capsys)
    assert "model.loss.correction cannot be combined with model.top_p below 1 or model.top_k: what" in line
    assert "never drawn, so no weight makes up for it" in line
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_there(tmp_path: Path, capsys):
    path = tmp_path / "nothing.jsonl"
    line = complaint("stage1", command("stage1", tmp_path, *rows(str(path))), tmp_path, capsys)
    assert f"{path}: no such file" in line
    assert not list(tmp_path.iterdir())


def test_too_few_rows_for_a_step(tmp_path: Path, capsys):
    path = write_rows(tmp_path / "mine.jsonl", TEXT)
    line = complaint("stage1", command("stage1", tmp_path, *rows(path)), tmp_path, capsys)
    assert "fewer examples than one step takes" in line


def test_an_unreadable_picture(tmp_path: Path, capsys):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "png")
    (tmp_path / "picture.png").write_bytes(buffer.getvalue()[:40])
    path = write_rows(tmp_path / "mine.jsonl", PICTURE, PICTURE)
    line = complaint("stage3", command("stage3", tmp_path, *rows(path)), tmp_path, capsys)
    assert f"{tmp_path / 'picture.png'}: not a readable picture" in line


def test_a_truncated_clip(tmp_path: Path, capsys):
    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for i in range(24):
            frame = Image.effect_noise((64, 64), 10.0 * i + 1).convert("RGB")
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    path = write_rows(tmp_path / "mine.jsonl", CLIP, CLIP)
    line = complaint("stage3", command("stage3", tmp_path, *rows(path)), tmp_path, capsys)
    assert f"{clip}: " in line
    assert "truncated" in line or "not a readable clip" in line


def test_a_prompt_longer_than_the_window(tmp_path: Path, capsys):
    path = write_rows(tmp_path / "mine.jsonl", *({**TEXT, "id": f"mine{i}"} for i in range(2)))
    args = command("stage1", tmp_path, *rows(path), "--model.policy.max_length=20")
    line = complaint("stage1", args, tmp_path, capsys)
    assert "2 were left out, whose prompts are too long" in line
    assert "example 'mine0' of 'generic' first" in line
    assert "raise model.policy.max_length" in line


def test_resuming_another_stage(checkpoint: Path, tmp_path: Path, capsys):
    outputs = tmp_path / "outputs"
    args = command("stage1", outputs, f"--ckpt_path={checkpoint}", *UNSEEN)
    line = complaint("stage1", args, outputs, capsys)
    assert "the checkpoint is of stage 'stage1_sft', this is 'stage1'" in line
    assert "--start_from" in line
    assert not list(outputs.rglob("*.ckpt"))


def test_resuming_on_other_data(checkpoint: Path, tmp_path: Path, capsys):
    args = command("stage1_sft", tmp_path, f"--ckpt_path={checkpoint}", "--data.train.seed=5", *UNSEEN)
    assert "resume with the same data" in complaint("stage1_sft", args, tmp_path, capsys)


def test_resuming_what_is_not_there(tmp_path: Path, capsys):
    args = command("stage1", tmp_path, f"--ckpt_path={tmp_path}/nothing.ckpt", *UNSEEN)
    assert f"{tmp_path}/nothing.ckpt" in complaint("stage1", args, tmp_path, capsys)


class Trap:
    """What would run code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("how", ["--ckpt_path", "--start_from"])
def test_a_checkpoint_that_would_run_code(how: str, checkpoint: Path, tmp_path: Path, capsys):
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content | {"extra": Trap(tmp_path / "ran")}, tmp_path / "trap.ckpt")
    args = command("stage1_sft", tmp_path / "outputs", f"{how}={tmp_path}/trap.ckpt", *UNSEEN)
    line = complaint("stage1_sft", [*args, "--weights_only=false"], tmp_path / "outputs", capsys)
    assert f"{tmp_path}/trap.ckpt is not a checkpoint of a stage" in line
    assert not (tmp_path / "ran").exists()


def test_resuming_half_a_checkpoint(checkpoint: Path, tmp_path: Path, capsys):
    (tmp_path / "half.ckpt").write_bytes(checkpoint.read_bytes()[:100_000])
    args = command("stage1_sft", tmp_path / "outputs", f"--ckpt_path={tmp_path}/half.ckpt", *UNSEEN)
    line = complaint("stage1_sft", args, tmp_path / "outputs", capsys)
    assert "half.ckpt is not a checkpoint of a stage (it is damaged" in line


def test_an_unreadable_picture_in_a_workers_batch(tmp_path: Path, capsys):
    (tmp_path / "picture.png").write_bytes(b"no picture")
    path = write_rows(tmp_path / "mine.jsonl", PICTURE, PICTURE)
    args = command("stage3", tmp_path, *rows(path), "--data.num_workers=1")
    line = complaint("stage3", args, tmp_path, capsys)
    assert line.startswith("error: example") or line.startswith(f"error: {path}")
    assert f"{tmp_path / 'picture.png'}: not a readable picture" in line


def test_memory_that_does_not_suffice(tmp_path: Path, capsys, monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr("lit_msrl.engines.HFEngine.generate", full)
    line = complaint("stage1", command("stage1", tmp_path, *UNSEEN), tmp_path, capsys)
    assert "out of memory (CUDA out of memory); lower model.micro_batch_size" in line


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 3000ms for recv"),
        torch.distributed.DistBackendError("NCCL error:\nremote process exited"),
    ],
)
def test_a_rank_that_does_not_answer(error: Exception, tmp_path: Path, capsys, monkeypatch):
    def waiting(*args, **options):
        raise error

    monkeypatch.setattr("lit_msrl.engines.HFEngine.generate", waiting)
    line = complaint("stage1", command("stage1", tmp_path, *UNSEEN), tmp_path, capsys)
    assert line.startswith("error: another rank died or hangs (")
    assert line.endswith("go on with --ckpt_path=last")


def test_a_bug_is_not_hidden(tmp_path: Path, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr("lit_msrl.engines.HFEngine.generate", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        call("stage1", command("stage1", tmp_path, *UNSEEN))


def test_secrets_of_the_environment_are_written_nowhere(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_sesame")
    monkeypatch.setenv("WANDB_API_KEY", "wb_sesame")
    call("stage1_sft", command("stage1_sft", tmp_path, "--trainer.max_steps=1", *UNSEEN))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "hparams.yaml", "last.ckpt"} <= {path.name for path in files}
    assert not [path for path in files if b"sesame" in path.read_bytes()]
    assert "sesame" not in str(capsys.readouterr())


def test_starting_from_what_is_not_there(tmp_path: Path, capsys):
    args = command("stage1", tmp_path, f"--start_from={tmp_path}/nothing.ckpt", *UNSEEN)
    line = complaint("stage1", args, tmp_path, capsys)
    assert f"{tmp_path}/nothing.ckpt: no such checkpoint" in line


@pytest.mark.parametrize("kept", [0, 1000, 100_000])
def test_starting_from_half_a_checkpoint(kept, checkpoint: Path, tmp_path: Path, capsys):
    half = tmp_path / "half.ckpt"
    half.write_bytes(checkpoint.read_bytes()[:kept])
    args = command("stage1", tmp_path / "outputs", f"--start_from={half}", *UNSEEN)
    line = complaint("stage1", args, tmp_path / "outputs", capsys)
    assert f"{half} is not a checkpoint of a stage" in line


def test_starting_from_somebody_elses_file(tmp_path: Path, capsys):
    torch.save({"epoch": 1, "state_dict": {}}, tmp_path / "other.ckpt")
    args = command("stage1", tmp_path / "outputs", f"--start_from={tmp_path}/other.ckpt", *UNSEEN)
    line = complaint("stage1", args, tmp_path / "outputs", capsys)
    assert "is not a checkpoint of a stage" in line


@pytest.mark.parametrize("change", ["size", "name"])
def test_starting_from_another_model(change, checkpoint: Path, tmp_path: Path, capsys):
    content = torch.load(checkpoint, weights_only=True)
    name = next(name for name, tensor in content["state_dict"].items() if tensor.ndim == 2)
    weight = content["state_dict"].pop(name)
    content["state_dict"] |= {name: weight[:-1]} if change == "size" else {"policy.other": weight}
    torch.save(content, tmp_path / "other.ckpt")
    args = command("stage1", tmp_path / "outputs", f"--start_from={tmp_path}/other.ckpt", *UNSEEN)
    line = complaint("stage1", args, tmp_path / "outputs", capsys)
    assert "holds another model than the policy" in line


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, capsys, monkeypatch):
    outputs, scratch, saved = tmp_path / "outputs", tmp_path / "scratch", []
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    original = WholeCheckpoints.save_checkpoint

    def with_no_room_from_the_second_on(self, checkpoint, path, storage_options=None):
        saved.append(path)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if len(saved) == 1 else 100_000, hard))
        try:
            original(self, checkpoint, path, storage_options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(WholeCheckpoints, "save_checkpoint", with_no_room_from_the_second_on)
    args = command("stage1_sft", outputs, "--checkpoint.every_n_train_steps=1", *UNSEEN)
    line = complaint("stage1_sft", args, outputs, capsys)
    assert f"checkpoint {saved[1]} could not be written" in line
    assert torch.load(saved[0].parent / "last.ckpt", weights_only=True)["global_step"] == 1
    assert sorted(path.name for path in saved[0].parent.iterdir()) == ["last.ckpt", "step_1.ckpt"]
    assert not list(scratch.iterdir())


def test_a_disk_that_fills_while_flushing_leaves_nothing_half_written(tmp_path: Path, capsys, monkeypatch):
    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lit_msrl.checkpoint_io.os.fsync", no_room)
    line = complaint("stage1_sft", command("stage1_sft", tmp_path, *UNSEEN), tmp_path, capsys)
    assert "No space left on device" in line
    assert not [path for path in tmp_path.rglob("*") if "ckpt" in path.name]


def test_a_failing_predecessor_stops_the_stage(tmp_path: Path, capsys, monkeypatch):
    def failing(args, **options):
        raise subprocess.CalledProcessError(1, args)

    monkeypatch.setattr("lit_msrl.cli.subprocess.run", failing)
    args = command("stage2", tmp_path, "--start_from=auto", *UNSEEN)
    assert "stage1.py" in complaint("stage2", args, tmp_path, capsys)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_an_interruption_says_how_to_go_on(tmp_path: Path, capsys, monkeypatch):
    def interrupted(self, batch, batch_idx):
        raise KeyboardInterrupt

    monkeypatch.setattr("lit_msrl.stages.sft.SFTModule.training_step", interrupted)
    with pytest.raises(SystemExit) as stop:
        call("stage1_sft", command("stage1_sft", tmp_path, *UNSEEN))
    assert stop.value.code == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt"))


def test_nothing_to_distil_is_an_error(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr("lit_msrl.stages.cmkd.select", lambda judgements, confidence: None)
    args = command("cmkd", tmp_path, "--trainer.max_epochs=1", *UNSEEN)  # without it, it would go on for ever
    complaint("cmkd", args, tmp_path, capsys)


@pytest.mark.slow
def test_the_script_itself_says_it_in_one_line(tmp_path: Path):
    path = write_rows(tmp_path / "mine.jsonl", {**TEXT, "winner": "C"})
    script = [sys.executable, str(REPOSITORY / "experiments" / "stage1.py")]
    options = ["fit", f"--outputs={tmp_path}/outputs", "--start_from=base", *SHORT, *rows(path)]
    done = subprocess.run(
        [*script, *options],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: {path} row 1: ")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["mine.jsonl", "outputs"]
