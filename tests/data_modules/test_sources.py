"""Files and hub layouts become examples; a row that does not fit names file, row and field."""

import csv
import gzip
import io
import json
import logging
import zipfile
from collections import Counter
from pathlib import Path
from typing import Literal

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from data_modules.base import PreferenceDataModule
from data_modules.media import Decoder, decode
from data_modules.sources import Rows
from lit_msrl.prompts import shown_first
from lit_msrl.types import Media
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


def packed(path: Path, files: dict[str, bytes]) -> str:
    """A zip of these files."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


def png(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 4), (shade,) * 3).save(content, "png")
    return content.getvalue()


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.json.gz"])
def test_a_table_in_an_archive(tmp_path, name):
    table = Path(write(tmp_path / name, [ROW, {**ROW, "winner": "2"}])).read_bytes()
    path = packed(tmp_path / "pairs.zip", {f"data/{name}": table, "notes.txt": b"x"})
    for named in (path, f"{path}/data/{name}"):
        assert [example.winner for example in examples(Rows(named))] == [1, 2]
    two = packed(tmp_path / "two.zip", {f"{i}/{name}": table for i in "ab"})
    with pytest.raises(ValueError, match=f"two.zip: holds several tables .a/{name}, b/{name}.; name one"):
        PreferenceDataModule(Rows(two))
    with pytest.raises(ValueError, match="none.zip: holds no table"):
        PreferenceDataModule(Rows(packed(tmp_path / "none.zip", {"notes.txt": b"x"})))


def test_json_lines_may_be_called_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("\n".join(map(json.dumps, [ROW, {**ROW, "winner": "2"}, ROW])))
    assert [example.winner for example in examples(Rows(str(path)))] == [1, 2, 1]
    path.write_text(json.dumps([ROW, ROW], indent=1))
    assert len(examples(Rows(str(path)))) == 2


def test_media_in_archives_need_no_unpacking(tmp_path):
    row = {"prompt": "a cat", "task_type": "image generation", "winner": "1"}
    path = write(tmp_path / "a.jsonl", [{**row, "media_1": "win/1.png", "media_2": "./lose/1.png"}])
    win = packed(tmp_path / "win.zip", {"win/1.png": png(10)})
    lose = packed(tmp_path / "lose.zip", {"lose/1.png": png(20)})
    (example,) = examples(Rows(path, media_root=[win, lose]))
    shades = [decode(media).frames[0].getpixel((0, 0)) for media in example.media]
    assert shades == [(10,) * 3, (20,) * 3]
    with pytest.raises(ValueError, match="absent.zip: no such folder or archive"):
        PreferenceDataModule(Rows(path, media_root=["absent.zip"]))


def test_a_clip_may_be_a_folder_of_frames_in_an_archive(tmp_path):
    frames = packed(tmp_path / "frames.zip", {f"v/{i}.png": png(10 * i) for i in range(12)})
    path = write(tmp_path / "a.jsonl", [{**ROW, "video": "v"}])
    (example,) = examples(Rows(path, media_root=frames))
    assert [frame.getpixel((0, 0)) for frame in decode(example.media[0]).frames] == [
        (s,) * 3 for s in (20, 60, 100)
    ]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("absent.png", "absent.png: no such file"),
        ("bad.zip/a.png", "bad.zip: not a readable archive"),
        ("cut.zip/a.png", "cut.zip/a.png: not a readable picture"),
        ("good.zip/../a.png", "leads out of the archive"),
        ("good.zip/b.png", "good.zip/b.png: no such file in the archive"),
        ("https://example.org/a.png", "addresses are not read unless"),
    ],
)
def test_media_that_cannot_be_read_name_file_row_and_field(tmp_path, image, message):
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    packed(tmp_path / "cut.zip", {"a.png": png(1)[:30]})
    packed(tmp_path / "good.zip", {"a.png": png(1)})
    path = write(tmp_path / "a.jsonl", [{**ROW, "image": "good.zip/a.png"}, {**ROW, "image": image}])
    first, second = examples(Rows(path))
    assert Decoder().example(first).media[0].frames
    with pytest.raises(ValueError, match=message) as caught:
        Decoder().example(second)
    assert str(caught.value).startswith(f"{path} row 2 field 'image': ")
    assert "\n" not in str(caught.value)


def test_rows_are_skipped_and_keep_their_numbers(tmp_path):
    path = write(tmp_path / "a.jsonl", [ROW] * 5)
    assert [example.id for example in examples(Rows(path, skip=1, limit=2))] == ["2", "3"]
    assert Rows(path, skip=1).describe() != Rows(path).describe()
    folder = tmp_path / "hub"
    folder.mkdir()
    write(folder / "train.parquet", [ROW] * 5)
    assert [example.id for example in examples(Rows(str(folder), skip=2, limit=2))] == ["3", "4"]
    assert [example.id for example in Rows(str(folder), skip=2).examples()] == ["3", "4", "5"]


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


PHOTOS = REALDATA / "dreambooth_photos"


@needs_realdata
@pytest.mark.parametrize(
    ("pairs", "count", "first", "ties"), [("best-worst", 466, 304, 0), ("all", 7230, 3777, 831)]
)
def test_real_rankings(pairs, count, first, ties):
    path = str(REALDATA / "image_reward" / "test.json")
    found = list(Rows(path, "image_reward", options={"pairs": pairs}, keep_ties=True).examples())
    winners = Counter(example.winner for example in found)
    assert (len(found), winners[1], winners["tie"]) == (count, first, ties)
    assert len({example.id for example in found}) == count


@needs_realdata
def test_real_statements_about_pictures_through_named_columns():
    options = {
        "columns": {"prompt": "sentence", "winner": "label"},
        "values": {
            "image": "images/{directory}/dev-{identifier}-0.png",
            "candidate_1": "True of the picture.",
            "candidate_2": "Not true of the picture.",
            "id": "{identifier}",
        },
        "labels": {"true": 1, "false": 2},
    }
    found = list(Rows(str(REALDATA / "nlvr" / "dev" / "dev.json"), options=options).examples())
    assert (len(found), sum(example.winner == 1 for example in found)) == (989, 547)
    assert 0.45 < sum(shown_first(example.id) for example in found) / 989 < 0.55
    assert {Decoder().example(example).media[0].frames[0].size for example in found} == {(400, 100)}


@needs_realdata
def test_real_photos_become_constructed_preferences_and_all_decode(tmp_path):
    rows = [json.loads(line) for line in (PHOTOS / "index.jsonl").read_text().splitlines()]
    classes = sorted({row["class"] for row in rows})
    pairs = [
        {"photo": row["image"], "is": row["class"], "other": classes[classes.index(row["class"]) - 1]}
        for row in rows
    ]
    options = {
        "columns": {"image": "photo", "candidate_1": "is", "candidate_2": "other"},
        "values": {"prompt": "What is in the photo?", "winner": 1},
    }
    source = Rows(write(tmp_path / "a.jsonl", pairs), options=options, media_root=str(PHOTOS))
    found = list(source.examples())
    decoder = Decoder()
    decoded = [decoder.example(example).media[0].frames[0] for example in found]
    assert len(decoded) == 158
    assert [frame.size for frame in decoded] == [decoder.sizes(example.media[0])[0] for example in found]
    assert {max(frame.size) for frame in decoded} <= set(range(100, 257))


@needs_realdata
def test_real_pictures_and_clips_of_all_formats_decode():
    folder = REALDATA / "llamafactory_demo" / "mllm_demo_data"
    kinds: dict[str, Literal["image", "video"]] = {".jpg": "image", ".mp4": "video", ".avi": "video"}
    files = sorted(folder.iterdir())
    for path in files:
        media = Media(kinds[path.suffix], str(path))
        assert [frame.size for frame in decode(media).frames] == Decoder().sizes(media)
    pictures = list((REALDATA / "image_reward" / "demo_images").iterdir())
    assert (len(files), len(pictures)) == (6, 4)
    assert all(decode(Media("image", str(path))).frames for path in pictures)
