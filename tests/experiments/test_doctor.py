"""The doctor finds what is planted, says where, and finds nothing where nothing is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from data_modules.content import content_hash
from experiments.doctor import checkpoint_bytes, main
from experiments.settings import budget_of, policy_of, read_settings
from lit_msrl.adapters import LoRA
from lit_msrl.cli import run
from lit_msrl.footprint import Step
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.sizes import size_of
from lit_msrl.types import Media
from tests.benchmarks.made import VL_ROWS
from tests.data_modules.made import photograph
from tests.experiments.made import REALDATA, STAGES, write_rows

ALONE = ["data.validation=null"]
LONG = "Which of these two is the red ball that lies in the garden behind the old house?"
TEXT = {"prompt": LONG, "candidate_1": "the ball", "candidate_2": "the sky", "winner": 1}


def examine(*options: str) -> int:
    return main([f"--{option}" for option in options])


def data(path: str, role: str = "train") -> list[str]:
    return [f"data.{role}=Rows", f"data.{role}.path={path}"]


def problems(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]


@pytest.mark.parametrize("stage", STAGES)
def test_the_shipped_configurations_are_well(stage, capsys):
    assert examine(f"config=experiments/configs/{stage}.yaml", "rows=40") == 0
    out = capsys.readouterr().out
    assert "nothing found that would stop or spoil this run" in out
    assert "train: the first 40 examples, 0 refused, 0 media unreadable" in out


def test_what_is_planted_is_found(tmp_path: Path, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "p.png")
    rows = [{**TEXT, "id": str(i), "image": "p.png"} for i in range(12)]
    rows[3]["winner"] = "A"
    rows[4]["image"] = "absent.png"
    rows[5]["task_type"] = "text"
    rows[6]["id"] = "1"
    rows[7]["winner"] = "tie"
    path = write_rows(tmp_path / "mine.jsonl", *rows)
    bench = write_rows(tmp_path / "bench.jsonl", {"q": "Describe it."}, {"q": LONG.upper()})
    assert examine("stage=stage3", *data(path), *ALONE, f"against={bench}:q", "gib=0.001") == 6
    said = problems(capsys)
    assert f"{path} row 4: field 'winner' is 'A'" in said[0]
    assert "2 rows do not fit" in said[0]
    assert "'5'" in said[0] or "row 6" in said[0]
    assert f"{path} row 5 field 'image'" in said[1]
    assert "absent.png: no such file" in said[1]
    assert "9 examples do not fill a batch of 16" in said[2]
    assert "1 examples repeat an id, such as '1'" in said[3]
    assert "9 training prompts are in" in said[4]
    assert "row 2" in said[4]
    assert "GiB of memory are needed, 0.0 are there" in said[5]


@pytest.mark.parametrize("stage", ["stage2", "cmkd"])
def test_rows_without_captions_are_counted(stage, tmp_path: Path, capsys):
    rows = []
    for i in range(40):
        Image.new("RGB", (64, 64), (i, 0, 0)).save(tmp_path / f"{i}.png")
        rows.append({**TEXT, "id": str(i), "image": f"{i}.png"})
    path = write_rows(tmp_path / "mine.jsonl", *rows)
    known = [content_hash(Media("image", str(tmp_path / f"{i}.png"))) for i in range(40)]
    few = write_rows(tmp_path / "few.jsonl", *({"media": key, "caption": "a cat"} for key in known[:32]))
    most = write_rows(tmp_path / "most.jsonl", *({"media": key, "caption": "a cat"} for key in known[:36]))
    options = [f"stage={stage}", *data(path), *ALONE, "data.batch_size=5"]
    assert examine(*options, f"data.captions={most}") == 0
    assert "train: all of 40 rows, 0 refused, 0 media unreadable, 4 without captions (left out)" in (
        capsys.readouterr().out
    )
    assert examine(*options, f"data.captions={few}") == 1
    (said,) = problems(capsys)
    assert "train: 8 of 40 rows have no caption" in said


def test_pictures_of_a_benchmark_are_found_in_the_training_data(tmp_path: Path, capsys):
    for i in range(14):
        photograph(i).save(tmp_path / f"p{i}.png")
    photograph(5).resize((100, 90)).save(tmp_path / "bench.jpg", quality=40)
    photograph(90).save(tmp_path / "other.png")
    rows = [{**TEXT, "id": f"t{i}", "image": f"p{i}.png"} for i in range(14)]
    path = write_rows(tmp_path / "mine.jsonl", *rows)
    names = ("bench.jpg", "other.png")
    shown = [{**row, "image": name} for row, name in zip(VL_ROWS, names, strict=False)]
    bench = write_rows(tmp_path / "bench.jsonl", *shown)
    options = ["stage=stage3", *data(path), *ALONE, "data.batch_size=2"]
    assert examine(*options, f"against_pictures=vl_rewardbench={bench}") == 1
    (said,) = problems(capsys)
    assert "1 training pictures look like those of vl_rewardbench=" in said
    assert f"'t5' is '{VL_ROWS[0]['id']}" in said
    assert examine(*options) == 0


def test_long_prompts_are_counted_against_the_limit(tmp_path: Path, capsys):
    rows = [{**TEXT, "id": str(i), "prompt": LONG * (1 if i < 14 else 40)} for i in range(20)]
    path = write_rows(tmp_path / "mine.jsonl", *rows)
    assert examine("stage=stage1", *data(path), *ALONE) == 1
    (said,) = problems(capsys)
    assert "6 of 20 prompts are too long" in said


def test_a_coin_that_always_falls_alike_is_noticed(tmp_path: Path, capsys):
    rows = [{**TEXT, "id": "same"} for _ in range(60)]
    assert examine("stage=stage1", *data(write_rows(tmp_path / "m.jsonl", *rows)), *ALONE) == 2
    said = problems(capsys)
    assert "59 examples repeat an id, such as 'same'" in said[0]
    assert "A is better in 100% of the examples" in said[1] or "A is better in 0% of the examples" in said[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "which stage?"),
        (["config=experiments/configs/trainer/fsdp.yaml", "stage=stage1"], "no GPU here; say --devices"),
        (["stage=stage3", "against_pictures=vl_rewardbench"], "name benchmark and data"),
        (["stage=stage3", "against_pictures=nobench=x"], "unknown benchmark 'nobench'"),
        (["stage=stage1", "against=bench.jsonl"], "name a file and its column"),
        (["stage=stage1", "data.train=Rows", "data.train.path=absent.jsonl"], "absent.jsonl: no such file"),
    ],
)
def test_a_question_that_cannot_be_answered_gets_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run(lambda: examine(*options))
    assert stop.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_the_policy_on_paper_reads_and_weighs_like_the_real_one():
    settings = read_settings([], "stage3")
    paper, real = policy_of(settings.model), GenerativeRMPolicy("tiny", max_length=1024)
    assert {parameter.device.type for parameter in paper.parameters()} == {"meta"}
    assert sum(p.numel() for p in paper.parameters()) == sum(p.numel() for p in real.parameters())
    assert settings.data.train is not None
    example = next(settings.data.train.examples())
    sizes = [settings.data.decoder.sizes(media) for media in example.media]
    assert budget_of(paper, settings.model).tokens(example, sizes) == budget_of(real, settings.model).tokens(
        example, sizes
    )


@pytest.mark.parametrize(("rank", "trained"), [(0, {"language"}), (4, {"language"})])
def test_a_checkpoint_takes_what_is_kept_of_the_model(rank, trained):
    policy = GenerativeRMPolicy("tiny", LoRA(rank=rank) if rank else None)
    policy.train_only(sorted(trained))
    step = Step(
        prompts=1, micro_batch=1, group=1, prompt_tokens=1, picture_tokens=0, completion_tokens=1,
        trained=frozenset(trained),
    )  # fmt: skip
    kept = [p for p in policy.parameters() if p.requires_grad or not rank]
    moments = 2 * sum(p.numel() * 4 for p in policy.parameters() if p.requires_grad)
    size = size_of(GenerativeRMPolicy("tiny").model, rank)
    assert checkpoint_bytes(size, step) == sum(p.numel() * 4 for p in kept) + moments


def test_memory_follows_the_configuration(capsys):
    def parts(*options: str) -> dict[str, str]:
        assert examine("stage=stage3", "rows=4", "data.batch_size=2", *options) == 0
        rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "│" in line]
        return {row[-2].strip(): row[-1].strip() for row in rows if len(row) == 3}

    alone = parts()
    assert {"weights", "optimizer", "KV cache", "gradients"} <= alone.keys()
    assert "reference" in parts("model.loss.kl_coef=0.1").keys() - alone.keys()
    files = ["config=experiments/configs/trainer/fsdp.yaml", "gib=80"]
    assert "gathered weights" in parts(*files, "devices=8").keys() - alone.keys()


@pytest.mark.skipif(not REALDATA.is_dir(), reason="the real files are not here")
def test_real_preferences_against_a_real_benchmark(capsys, tmp_path: Path):
    pairs = REALDATA / "llamafactory_demo" / "dpo_en_demo_sub120.json"
    bench = next((REALDATA / "judgebench").glob("*.jsonl"))
    prompts = [{"q": row["conversations"][0]["value"]} for row in json.loads(pairs.read_text())[:3]]
    leak = write_rows(tmp_path / "leak.jsonl", *prompts)
    options = [*data(str(pairs)), "data.train.adapter=sharegpt_ranking", *ALONE]
    options += ["model.policy.max_length=16384", f"against={bench}:question", f"against={leak}:q"]
    found = examine("stage=stage1", *options, "gib=1000")
    out = capsys.readouterr().out
    assert "0 of 120 training prompts nearly are one of its 270" in out.replace("\n", " ")
    assert found == 1
    assert "120 rows" in out


def test_what_a_stage_cannot_learn_from_is_named(tmp_path: Path, capsys):
    path = write_rows(tmp_path / "mine.jsonl", *({**TEXT, "id": str(i)} for i in range(40)))
    assert examine("stage=stage1_sft", *data(path), *ALONE) == 2
    said = problems(capsys)
    assert "40 rows do not fit" in said[0]
    assert "example '0' of 'generic' has no rationale, which the stage needs" in said[0]
    assert "0 examples do not fill a batch" in said[1]
