"""The evaluation script, from the command line to the table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from experiments import evaluate
from experiments.judging import placed
from lit_msrl.cli import run
from lit_msrl.policy import GenerativeRMPolicy
from tests.benchmarks.made import JUDGEBENCH_ROWS, VL_ROWS
from tests.endpoint import Server, refused, said, serving, text_of
from tests.experiments.made import write_rows


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_rows(tmp_path / "judgebench.jsonl", *JUDGEBENCH_ROWS)


def call(*args: str) -> None:
    run(lambda: evaluate.main(args))


def complaint(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        call(*args)
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert stop.value.code == 1
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def first(request) -> tuple[int, dict]:
    """Judges by text: the answer "a" is better."""
    better = "A" if text_of(request).rfind("\na\n") < text_of(request).rfind("\nb\n") else "B"
    return said(f"<think>So.</think>\n<answer>{better}</answer>")


def asked_of(server: Server, data: str, out: Path, *more: str) -> list[str]:
    return [
        "--benchmark=judgebench", f"--data={data}", f"--out={out}", "--model=m", f"--endpoint={server.url}",
        "--retries=0", *more,
    ]  # fmt: skip


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def test_an_endpoint_is_measured_and_the_table_says_so(data, tmp_path, capsys):
    with serving(first) as server:
        call(*asked_of(server, data, tmp_path / "out"))
    records = lines(tmp_path / "out")
    assert len(records) == len(server.requests) == 10
    assert set(records[0]) == {
        "id",
        "order",
        "sample",
        "preferred",
        "confidence",
        "text",
        "tokens",
        "well_formed",
    }
    assert {r["preferred"] for r in records} == {1}, "1 is the source's own numbering, in both orders"
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    strict = [f for f in scores["figures"] if (f["protocol"], f["figure"]) == ("strict", "overall")]
    assert strict[0]["value"] == pytest.approx(3 / 5)  # the labels are A>B in three of five
    out = capsys.readouterr().out
    assert "JudgeBench (version 1) · 5 examples · 10 judgements" in out
    for word in (
        "official",
        "knowledge",
        "strict",
        "swap consistency",
        "parse failures",
        "both orders; right",
    ):
        assert word in out
    assert "…" not in out, "nothing is cut off in a terminal of 80 columns"


def test_an_interrupted_run_goes_on_where_it_stopped(data, tmp_path, capsys):
    out, allowed = tmp_path / "out", 4

    def sometimes(request):
        return first(request) if len(server.requests) <= allowed else refused(500, "out of order")

    with serving(sometimes) as server:
        args = asked_of(server, data, out, "--concurrency=1", "--batch_size=1")
        assert "status 500: out of order" in complaint(capsys, *args)
        assert len(lines(out)) == 4
        with (out / "records.jsonl").open("a") as file:
            file.write('{"id": "j2", "order": "A')  # killed while writing
        server.requests.clear()
        allowed = 99
        call(*args)
        assert len(server.requests) == 6
        call(*args)
        assert len(server.requests) == 6, "all is there: nothing is asked"
    assert len(lines(out)) == 10
    with serving(first) as other:
        call(*asked_of(other, data, tmp_path / "whole"))
    scores = [json.loads((folder / "scores.json").read_text()) for folder in (out, tmp_path / "whole")]
    assert scores[0] == scores[1]


def test_a_folder_holds_one_run(data, tmp_path, capsys):
    with serving(first) as server:
        call(*asked_of(server, data, tmp_path / "out"))
        line = complaint(capsys, *asked_of(server, data, tmp_path / "out", "--votes=3"))
    assert "holds a run with votes 1 instead of 3" in line
    assert "--out" in line


def test_a_run_does_not_go_on_with_another_sampler(data, tmp_path, capsys):
    args = ["--benchmark=judgebench", f"--data={data}", f"--out={tmp_path}/out", "--model=tiny", "--limit=1"]
    args += ["--max_completion=2", "--device=cpu"]
    call(*args)
    assert "engine HFEngine instead of VLLMEngine" in complaint(capsys, *args, "--engine=VLLMEngine")
    assert "dtype float32 instead of bfloat16" in complaint(capsys, *args, "--dtype=bfloat16")


def test_a_model_runs_on_a_gpu_if_there_is_one(monkeypatch):
    assert placed("cpu", None) == ("cpu", "float32")
    assert placed("cuda:1", None) == ("cuda:1", "bfloat16")
    for there, expected in ((True, ("cuda", "float16")), (False, ("cpu", "float16"))):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert placed(None, "float16") == expected


def test_votes_with_early_stop(data, tmp_path, capsys):
    with serving(first) as server:
        call(*asked_of(server, data, tmp_path / "out", "--votes=5", "--early_stop"))
        assert len(server.requests) == 5 * 6
        assert {r["temperature"] for r in server.requests} == {1.0}
    assert "until decided" in capsys.readouterr().out


def test_the_key_is_nowhere_in_the_folder(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with serving(first) as server:
        call(*asked_of(server, data, tmp_path / "out"))
    assert server.headers[0]["authorization"] == "Bearer sk-secret"
    written = "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    printed = capsys.readouterr()
    assert "secret" not in written + printed.out + printed.err


def test_scoring_and_comparing(data, tmp_path, capsys):
    with serving(first) as server:
        call(*asked_of(server, data, tmp_path / "a"))
    with serving(lambda request: said("<think>So.</think><answer>A</answer>")) as server:
        call(*asked_of(server, data, tmp_path / "b"))
    capsys.readouterr()
    records = f"--records={tmp_path}/a/records.jsonl"
    call("score", "--benchmark=judgebench", f"--data={data}", records, "--json")
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "a" / "scores.json").read_text())
    call("score", "--benchmark=judgebench", f"--data={data}", records)
    assert "JudgeBench" in capsys.readouterr().out
    call("compare", str(tmp_path / "a"), str(tmp_path / "b"))
    out = capsys.readouterr().out
    assert "McNemar p =" in out
    assert "+10.0 points" in out  # 60 % against 50 %
    call("compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json")
    assert json.loads(capsys.readouterr().out)["tests"]["difference"] == pytest.approx(0.1)


def test_records_made_elsewhere_are_scored(data, tmp_path, capsys):
    made = write_rows(
        tmp_path / "r.jsonl", *({"id": r["pair_id"], "order": "AB", "preferred": 1} for r in JUDGEBENCH_ROWS)
    )
    call("score", "--benchmark=judgebench", f"--data={data}", f"--records={made}")
    out = capsys.readouterr().out
    assert "left out: 5 of 5 examples were not judged in both orders" in out
    few = write_rows(tmp_path / "few.jsonl", {"id": "j0", "order": "AB", "preferred": 1})
    args = ("score", "--benchmark=judgebench", f"--data={data}", f"--records={few}")
    assert "4 of 5 examples have no record, such as 'j1'" in complaint(capsys, *args)
    call(*args, "--partial")
    assert "partial: 4 examples of the data were not judged" in capsys.readouterr().out


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A stage's checkpoint of the embedded model, as a stage leaves it."""
    folder = tmp_path / "stage1" / "version_0"
    (folder / "checkpoints").mkdir(parents=True)
    weights = {f"policy.{k}": v for k, v in GenerativeRMPolicy("tiny").state_dict().items()}
    torch.save({"stage": "stage1", "state_dict": weights}, folder / "checkpoints" / "last.ckpt")
    policy = {
        "class_path": "lit_msrl.policy.GenerativeRMPolicy",
        "init_args": {"model_name": "tiny", "lora": None},
    }
    model = {"policy": policy, "view": "caption", "style": "compact", "max_completion": 4}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    return folder / "checkpoints" / "last.ckpt"


def test_the_embedded_model_and_its_checkpoint_judge_alike(data, tmp_path, checkpoint):
    common = ["--benchmark=judgebench", f"--data={data}", "--limit=2"]
    call(*common, "--model=tiny", "--max_completion=4", "--view=caption", f"--out={tmp_path}/tiny")
    call(*common, f"--model={checkpoint}", f"--out={tmp_path}/checkpoint")
    assert lines(tmp_path / "tiny") == lines(tmp_path / "checkpoint")
    held = json.loads((tmp_path / "checkpoint" / "settings.json").read_text())
    assert (held["view"], held["style"], held["max_completion"]) == ("caption", "compact", 4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--benchmark=judgbench"], "unknown benchmark 'judgbench'; use genai_bench"),
        (["--data=nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--votes=0"], "votes (0)"),
        (["--orders=sideways"], "orders"),
        (["--model=nothing/last.ckpt"], "nothing/last.ckpt: no such checkpoint"),
        (["--temperature=server", "--model=tiny"], "temperature 'server' is for endpoints"),
        (["--endpoint=localhost", "--model=m"], "is no URL"),
        (["--endpoint=http://localhost:1", "--engine=HFEngine"], "--engine samples in this process"),
    ],
)
def test_settings_that_cannot_work_are_one_line(changed, message, data, tmp_path, capsys):
    args = ["--benchmark=judgebench", f"--data={data}", f"--out={tmp_path}/out", "--model=tiny", *changed]
    assert message in complaint(capsys, *args)


def test_a_checkpoint_without_its_configuration(data, tmp_path, checkpoint, capsys):
    (checkpoint.parent.parent / "config.yaml").unlink()
    args = ["--benchmark=judgebench", f"--data={data}", f"--out={tmp_path}/out", f"--model={checkpoint}"]
    assert "config.yaml is missing" in complaint(capsys, *args)


def test_bad_data_is_one_line_and_leaves_nothing(tmp_path, capsys):
    path = write_rows(tmp_path / "bad.jsonl", JUDGEBENCH_ROWS[0], {**JUDGEBENCH_ROWS[1], "label": "A=B"})
    args = ["--benchmark=judgebench", f"--data={path}", f"--out={tmp_path}/out", "--model=tiny"]
    assert f"{path} row 2: field 'label' is 'A=B'" in complaint(capsys, *args)
    assert not (tmp_path / "out").exists()


def test_missing_pictures_are_told_before_anything_is_judged(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "there.png")
    names = ["there.png", "there.png", "gone.png", "lost.png", "gone.png"]
    rows = [{**row, "image": name} for row, name in zip(VL_ROWS, names, strict=False)]
    path = write_rows(tmp_path / "vl.jsonl", *rows)
    with serving(first) as server:
        args = ["--benchmark=vl_rewardbench", f"--data={path}", f"--out={tmp_path}/out", "--model=m"]
        line = complaint(capsys, *args, f"--endpoint={server.url}", "--batch_size=1", "--concurrency=1")
        assert not server.requests, "though the first rows could have been judged"
        assert not (tmp_path / "out" / "records.jsonl").exists()
        assert "2 media files are missing, the first: " in line
        assert re.search(rf"{path} row [345] field 'image': {tmp_path}/(gone|lost)\.png: no such file", line)
        for name in ("gone.png", "lost.png"):
            Image.new("RGB", (8, 8)).save(tmp_path / name)
        call(*args, f"--endpoint={server.url}")
        assert len(server.requests) == 10


def test_addresses_are_not_read(tmp_path, capsys):
    row = {**VL_ROWS[0], "image": "https://example.org/a.png"}
    path = write_rows(tmp_path / "vl.jsonl", row)
    args = ["--benchmark=vl_rewardbench", f"--data={path}", f"--out={tmp_path}/out", "--model=tiny"]
    assert "https://example.org/a.png: is an address, and only files are read here" in complaint(
        capsys, *args
    )


def test_a_dead_endpoint_is_one_line(data, tmp_path, capsys):
    with serving(first) as server:
        pass
    line = complaint(capsys, *asked_of(server, data, tmp_path / "out"))
    assert f"endpoint {server.url}: cannot be reached" in line


def test_folders_that_cannot_be_compared(data, tmp_path, capsys):
    assert "settings.json: no such file" in complaint(
        capsys, "compare", str(tmp_path / "x"), str(tmp_path / "y")
    )
    other = write_rows(tmp_path / "other.jsonl", *JUDGEBENCH_ROWS[:3])
    with serving(first) as server:
        call(*asked_of(server, data, tmp_path / "a"))
        call(*asked_of(server, other, tmp_path / "b"))
    line = complaint(capsys, "compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert "judged on other examples" in line


@pytest.mark.parametrize("args", [["--help"], ["score", "--help"], ["compare", "--help"]])
def test_help_names_the_benchmarks(args, capsys):
    with pytest.raises(SystemExit) as stop:
        call(*args)
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert "vl_rewardbench" in out
