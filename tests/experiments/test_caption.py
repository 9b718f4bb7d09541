"""Captions from a server on localhost and of a model in this process: who is asked what, what is written."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data_modules import World
from data_modules.files import read_rows
from experiments.captioning import Tally, short
from lit_msrl.captioners import Wording, outcome, shortened
from tests.endpoint import pictures_of, refused, said, serving, text_of
from tests.experiments.captioned import (
    TEXTS,
    captions,
    describe,
    levels,
    paint,
    records,
    rows_of,
    write,
)
from tests.experiments.made import REALDATA, call, command, write_rows


def test_every_medium_is_asked_about_once_wherever_it_occurs(tmp_path: Path, capsys):
    paint(tmp_path / "copy.png", 1)
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.write(tmp_path / "copy.png", "deep/same.png")
    frames = [paint(tmp_path / f"frame{i}.png", 20 + i) for i in range(4)]
    drawn = {"task_type": "image generation", "prompt": "a cat", "winner": 2}
    about_it = {"task_type": "image understanding"}
    data = write_rows(
        tmp_path / "pairs.jsonl",
        {**TEXTS, "image": paint(tmp_path / "a.png", 1)},
        {**TEXTS, "image": "copy.png"},
        {**TEXTS, "image": "more.zip/deep/same.png"},
        {**drawn, "media_1": paint(tmp_path / "b.png", 2), "media_2": "a.png"},
        {**TEXTS, "video": frames},
        {**TEXTS, **about_it, "image": paint(tmp_path / "c.png", 3), "caption": "It has one."},
        TEXTS,
    )  # fmt: skip
    out = tmp_path / "new" / "captions.jsonl"
    with serving(describe) as server:
        assert write(out, data, server.url, "--num_frames=2", "--price_in=1", "--price_out=2") == 0
    shown = sorted(levels(request) for request in server.requests)
    assert shown == [[1], [2], [21, 23]], "the clip's frames are those that a stage would see"
    asked = {len(levels(request)): text_of(request) for request in server.requests}
    assert "Describe this picture for somebody" in asked[1]
    assert "frames of one clip" in asked[2]
    assert not any("what is it" in text or "a cat" in text for text in asked.values())
    found = records(out)
    assert captions(out) == [f"A picture of level {level}." for level in (1, 2, 21)]
    assert {(r["kind"], r["frames"]) for r in found} == {("image", 1), ("video", 2)}
    assert {(r["model"], r["template"], r["error"], r["cut"]) for r in found} == {
        ("m", Wording().version, None, False)
    }
    assert {(r["input_tokens"], r["output_tokens"]) for r in found} == {(1, 7)}
    first = next(record for record in found if "level 1" in record["caption"])
    assert first["origin"] == f"{data} row 1 field 'image'"
    said_of_it = capsys.readouterr().out
    assert "3 captions written, 0 there before" in said_of_it
    assert "media looked at: 6, of these 3 repeated; 3 + 21 tokens, cost 4.5e-05" in said_of_it


def test_many_are_asked_at_once_and_a_second_run_asks_nothing(tmp_path: Path, capsys):
    gate = threading.Barrier(5, timeout=20)

    def answer(request):
        gate.wait()  # nobody is answered before five have asked
        return describe(request)

    data, out = rows_of(tmp_path, 10), tmp_path / "captions.jsonl"
    with serving(answer) as server:
        assert write(out, data, server.url, "--concurrency=5") == 0
        assert server.most_at_once == 5
        assert write(out, data, server.url) == 0
        assert len(server.requests) == 10
    assert "0 captions written, 10 there before" in capsys.readouterr().out


def test_a_limit_asks_about_the_first_few(tmp_path: Path):
    data, out = rows_of(tmp_path, 5), tmp_path / "captions.jsonl"
    with serving(describe) as server:
        assert write(out, data, server.url, "--limit=2") == 0
        assert sorted(sum(map(levels, server.requests), [])) == [0, 1]
        assert write(out, data, server.url, "--limit=2") == 0
        assert sorted(sum(map(levels, server.requests), [])) == [0, 1, 2, 3]


def test_validation_data_are_captioned_too(tmp_path: Path):
    data, out = rows_of(tmp_path, 2), tmp_path / "captions.jsonl"
    (tmp_path / "held").mkdir()
    held = write_rows(tmp_path / "held" / "out.jsonl", {**TEXTS, "image": paint(tmp_path / "held/x.png", 9)})
    more = ["--data.validation=Rows", f"--data.validation.path={held}"]
    with serving(describe) as server:
        assert write(out, data, server.url, *more) == 0
    assert sorted(sum(map(levels, server.requests), [])) == [0, 1, 9]


def test_parquet_is_written_at_the_end_from_a_journal(tmp_path: Path):
    data, out = rows_of(tmp_path, 3), tmp_path / "captions.parquet"
    with serving(lambda r: describe(r) if levels(r)[0] else refused(400, "no")) as server:
        assert write(out, data, server.url) == 1
        found = [row for _, row in read_rows(str(out))]
        assert sorted(str(row["caption"] or row["error"])[:20] for row in found) == [
            "A picture of level 1", "A picture of level 2", "refuses with status "
        ]  # fmt: skip
    with serving(describe) as server:
        assert write(out, data, server.url) == 0
        assert len(server.requests) == 1
    found = [row for _, row in read_rows(str(out))]
    assert [row["error"] for row in found] == [None] * 3
    assert found[0].keys() == records(Path(f"{out}.jsonl"))[0].keys()
    assert pyarrow.parquet.read_schema(out).field("input_tokens").type == pyarrow.int64()


def test_captions_keep_to_their_length():
    text = "A dog. It runs fast (very). Then it"
    assert shortened(text, None) == text
    assert shortened(text, None, ended=False) == "A dog. It runs fast (very)."
    assert shortened(text, 6) == "A dog. It runs fast (very)."
    assert shortened(text, 5) == "A dog."
    assert shortened(text, 1) == "A"
    assert shortened("没有。结束", None, ended=False) == "没有。"
    assert shortened("never", None, ended=False) == ""
    assert outcome(" A dog. ", True, 2, 9, (1, 2)).cut is False
    assert outcome(text, True, 5, 9, (1, 2)).cut is True


def test_the_cap_is_asked_for_and_held_to(tmp_path: Path, capsys):
    data, out = rows_of(tmp_path, 2), tmp_path / "captions.jsonl"
    with serving(lambda request: said("One two three. Four five six.")) as server:
        assert write(out, data, server.url, "--max_words=4") == 0
    assert all("at most 4 words" in text_of(request) for request in server.requests)
    assert captions(out) == ["One two three."] * 2
    assert "2 captions written (2 of them cut to whole sentences)" in capsys.readouterr().out


def test_wordings_that_differ_are_told_apart():
    versions = {Wording("full").version, Wording("full", 9).version, Wording("compact", 9).version}
    assert len(versions | {Wording("compact").version}) == 4
    assert Wording("full").version == Wording("full").version


def test_what_it_costs():
    tally = Tally(2.5, 10.0)
    tally.input_tokens, tally.output_tokens = 1_200_000, 300_000
    assert tally.cost == "1.20M + 300.0k tokens, cost 6"
    assert Tally(0, 0).cost == "0 + 0 tokens"
    assert short(999) == "999"


def drawn(folder: Path, count: int) -> tuple[str, Sequence[str]]:
    """Pictures of the drawn world as files, and what they show."""
    world = World(["image understanding"], size=count, split="train", seed=3)
    rows, captions = [], []
    for i in range(count):
        example = world.example(i)
        example.media[0].frames[0].save(folder / f"{i}.png")
        rows.append({**TEXTS, "id": str(i), "image": f"{i}.png"})
        captions.append(example.captions[0])
    return write_rows(folder / "drawn.jsonl", *rows), captions


def test_a_model_in_this_process_describes_what_it_sees(tmp_path: Path):
    data, truth = drawn(tmp_path, 6)
    out = tmp_path / "captions.jsonl"
    more = ["--batch_size=4", "--max_tokens=64", "--device=cpu"]
    assert write(out, data, None, *more) == 0
    found = records(out)
    by_row = {int(record["origin"].split(" row ")[1].split(" ")[0]) - 1: record for record in found}
    assert [by_row[i]["caption"] for i in range(6)] == truth
    assert all(record["output_tokens"] <= 64 for record in found)
    assert all(record["input_tokens"] > 16 for record in found)
    assert {record["template"] for record in found} == {Wording("compact").version}
    assert write(out, data, None, *more) == 0
    assert len(records(out)) == 6


def test_a_model_in_this_process_says_what_is_too_long_and_what_was_cut_off(tmp_path: Path, capsys):
    data, _ = drawn(tmp_path, 2)
    assert write(tmp_path / "a.jsonl", data, None, "--max_length=10", "--device=cpu") == 1
    assert "more than max_length=10" in capsys.readouterr().out
    assert write(tmp_path / "b.jsonl", data, None, "--max_tokens=2", "--device=cpu") == 1
    assert "cut off at max_tokens=2" in capsys.readouterr().out


@pytest.mark.slow
def test_captions_of_a_published_schema_train_stage_2(tmp_path: Path, capsys):
    rows = []
    for i in range(7):
        paint(tmp_path / f"{i}.png", i % 6)  # two rows show the same picture
        picture = {"bytes": (tmp_path / f"{i}.png").read_bytes(), "path": f"{i}.jpg"}
        answers = {"question": "what is it?", "chosen": "a cat", "rejected": "a dog"}
        rows.append({"ds_name": "made", "image": picture, **answers, "idx": str(i), "image_path": ""})
    data, out = tmp_path / "rlaif.parquet", tmp_path / "captions.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), data)
    adapter = "--data.train.adapter=rlaif_v"
    with serving(lambda r: describe(r) if levels(r)[0] != 5 else refused(400, "no")) as server:
        assert write(out, str(data), server.url, adapter) == 1
        assert len(server.requests) == 6
    learn = [
        "--data.train=Rows", f"--data.train.path={data}", adapter, f"--data.captions={out}",
        "--trainer.max_steps=1", "--data.batch_size=5", "--trainer.limit_val_batches=0",
    ]  # fmt: skip
    cli = call("stage2", command("stage2", tmp_path / "outputs", *learn))
    prompts = cli.model.last_rollout.prompts
    new = [prompt for prompt in prompts if prompt.task_type != "text"]
    assert len(new) == 4
    assert all("A picture of level" in prompt.text and not prompt.media for prompt in new)


@pytest.mark.skipif(not REALDATA.is_dir(), reason="the real files are not here")
def test_real_clips_that_repeat_are_asked_about_once(tmp_path: Path, capsys):
    data = REALDATA / "videogen_pairs" / "example.csv"
    more = ["--data.train.adapter=videogen_rewardbench", "--data.train.options={label: VQ}"]
    more += ["--data.train.keep_ties=true", "--num_frames=3"]
    with serving(lambda request: said(f"{len(pictures_of(request))} frames.")) as server:
        assert write(tmp_path / "c.jsonl", str(data), server.url, *more) == 0
    assert len(server.requests) == 4
    assert captions(tmp_path / "c.jsonl") == ["3 frames."] * 4
    assert "media looked at: 16, of these 12 repeated" in capsys.readouterr().out
