"""Files and hub layouts become examples; a row that does not fit names file, row and field."""

import csv
import gzip
import json
import logging
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data_modules.base import PreferenceDataModule
from data_modules.media import decode
from data_modules.sources import Rows
from lit_msrl.prompts import shown_first
from tests.data_modules.made import REALDATA, needs_realdata

ROW = {"prompt": "2+2?", "candidate_1": "4", "candidate_2": "5", "winner": "1"}


def examples(source):
    return [row["example"] for row in source.dataset()]


def write(path: Path, rows: list[dict]) -> str:
    """Write rows in the format that the name asks for."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return str(path)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        if ".csv" in path.suffixes:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.write(json.dumps(rows) if ".json" in path.suffixes else "\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.parametrize(
    "name", ["a.json", "a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz", "a.csv.gz", "a.json.gz"]
)
def test_every_format_gives_the_same_examples(tmp_path, name):
    rows = [ROW, {**ROW, "winner": "2"}]
    first, second = examples(Rows(write(tmp_path / name, rows)))
    assert (first.id, first.winner, first.candidates) == ("1", 1, ("4", "5"))
    assert (second.id, second.winner) == ("2", 2)


def test_own_ids_are_kept_and_limit_limits(tmp_path):
    path = write(tmp_path / "a.jsonl", [{**ROW, "id": name} for name in "abc"])
    assert [example.id for example in examples(Rows(path, limit=2))] == ["a", "b"]


def test_folder_in_hub_layout_is_streamed_and_resumed(tmp_path):
    for shard in range(2):
        write(tmp_path / f"train-{shard:05d}-of-00002.parquet", [ROW] * 3)
    source = Rows(str(tmp_path), split="train")
    assert [example.id for example in examples(source)] == list("123456")
    stream = source.dataset()
    rows = iter(stream)
    for _ in range(4):
        next(rows)
    again = source.dataset()
    again.load_state_dict(stream.state_dict())
    assert [row["example"].id for row in again] == ["5", "6"]


def test_ties_are_left_out_and_counted(tmp_path, caplog):
    path = write(tmp_path / "a.jsonl", [ROW, {**ROW, "winner": "tie"}])
    source = Rows(path)
    with caplog.at_level(logging.INFO):
        assert len(examples(source)) == 1
    assert source.tally == {"rows": 2, "examples": 1, "ties": 1}
    assert "1 ties left out, 1 examples kept" in caplog.text
    assert [example.winner for example in examples(Rows(path, keep_ties=True))] == [1, "tie"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"winner": "3"}, "row 2: field 'winner' is '3'"),
        ({"winner": ""}, "row 2: field 'winner' .the label. is missing or empty"),
        ({"prompt": ""}, "row 2: field 'prompt' is missing"),
        ({"task_type": "smell"}, "row 2: field 'task_type' is 'smell'; expected one of 'text'"),
    ],
)
def test_row_that_does_not_fit_names_file_row_and_field(tmp_path, name, change, message):
    path = write(tmp_path / name, [{**ROW, "task_type": "text"}, {**ROW, "task_type": "text", **change}])
    with pytest.raises(ValueError, match=message) as caught:
        examples(Rows(path))
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"prompt": 1', "row 1: is not JSON"),
        ("a.jsonl", "[1]", "row 1: is list, not an object"),
        ("a.json", '{"prompt": "x"}', "must hold a list of rows"),
        ("a.csv", "prompt,winner\nx\n", "row 1: has not the 2 columns"),
        ("a.csv", "prompt,winner\nx,1,2\n", "row 1: has not the 2 columns"),
        ("a.csv", 'prompt,winner\n"x,1\n', "not a readable .csv file"),
        ("a.jsonl", b"\xff\xfe", "not a readable .jsonl file"),
        ("a.jsonl.gz", b"no gzip", "not a readable .jsonl file"),
        ("a.parquet", b"no parquet", "not a readable .parquet file"),
    ],
)
def test_unreadable_file_says_what_is_wrong(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=message) as caught:
        examples(Rows(str(path)))
    assert path.name in str(caught.value)


def test_missing_file_and_unknown_adapter_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        PreferenceDataModule(Rows(str(tmp_path / "absent.jsonl")))
    path = write(tmp_path / "a.jsonl", [ROW])
    with pytest.raises(ValueError, match="unknown adapter 'judgbench'; use generic, gram_rr"):
        PreferenceDataModule(validation=Rows(path, "judgbench"))


def odd(row, *, copies=2):
    """An adapter for the test below: several examples, none, or a KeyError."""
    from data_modules.datasets.generic import to_example

    if row["prompt"] == "skip":
        return None
    return [to_example({**row, "id": f"{row['id']}-{i}"}) for i in range(copies)]


def test_own_adapter_may_give_several_or_none_and_takes_options(tmp_path):
    path = write(tmp_path / "a.jsonl", [ROW, {**ROW, "prompt": "skip"}])
    source = Rows(path, f"{__name__}.odd", options={"copies": 3})
    assert [example.id for example in examples(source)] == ["1-0", "1-1", "1-2"]
    bad = write(tmp_path / "b.jsonl", [{"winner": 1}])
    with pytest.raises(ValueError, match="row 1: field 'prompt' is missing"):
        examples(Rows(bad, f"{__name__}.odd"))


def test_media_paths_start_at_the_file_or_the_given_root(tmp_path):
    path = write(tmp_path / "a.jsonl", [{**ROW, "image": "./x/1.png"}])
    assert examples(Rows(path))[0].media[0].source == str(tmp_path / "x/1.png")
    assert examples(Rows(path, media_root="/data"))[0].media[0].source == "/data/x/1.png"


def test_description_tells_sources_apart(tmp_path):
    path = write(tmp_path / "a.jsonl", [ROW])
    assert (
        Rows(path).describe()
        != Rows(path, limit=1).describe()
        != Rows(path, options={"label": "VQ"}).describe()
    )


@needs_realdata
@pytest.mark.parametrize(
    ("path", "adapter", "count", "first"),
    [
        ("judgebench", "judgebench", 270, 143),
        ("llamafactory_demo/dpo_en_demo_sub120.json", "sharegpt_ranking", 120, 120),
    ],
)
def test_real_text_files(path, adapter, count, first):
    file = next((REALDATA / path).glob("*.jsonl")) if path == "judgebench" else REALDATA / path
    found = examples(Rows(str(file), adapter))
    assert len({example.id for example in found}) == len(found) == count
    assert sum(example.winner == 1 for example in found) == first
    assert 0.35 < sum(shown_first(example.id) for example in found) / count < 0.65


@needs_realdata
def test_real_clips():
    path = str(REALDATA / "videogen_pairs" / "example.csv")
    with pytest.raises(ValueError, match="row 1: field 'Overall' .the label. is missing; choose"):
        examples(Rows(path, "videogen_rewardbench"))
    found = examples(Rows(path, "videogen_rewardbench", options={"label": "VQ"}, keep_ties=True))
    assert [example.winner for example in found] == [2, "tie"] * 4
    assert {
        example.winner for example in examples(Rows(path, "videogen_rewardbench", options={"label": "TA"}))
    } == {1}
    frames = decode(found[1].media[0], num_frames=2, max_pixels=10_000).frames
    assert len(frames) == 2
    assert all(frame.width * frame.height <= 10_000 for frame in frames)
