"""Captions find their examples by the content of what they describe, wherever it lies."""

from __future__ import annotations

import http.server
import json
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from data_modules import (
    CaptionPreferenceDataModule,
    DataReport,
    MultimodalPreferenceDataModule,
    Rows,
    hashes,
)
from data_modules.captions import Captions
from data_modules.content import MediaError, content_hash
from data_modules.hashes import KnownHashes
from data_modules.urls import Urls
from lit_msrl.types import Media, PreferenceExample
from tests.data_modules.made import Numbers


def paint(path: Path, level: int) -> str:
    """A grey picture; its path."""
    Image.new("RGB", (8, 8), (level,) * 3).save(path)
    return str(path)


def about(*media: Media, name: str = "x", captions: tuple[str, ...] = ()) -> PreferenceExample:
    task = "image generation" if len(media) == 2 else "image understanding"
    candidates = None if len(media) == 2 else ("a", "b")
    return PreferenceExample(name, task, "q", 1, candidates, media, captions, source="s")


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def caption_rows(paths: list[str]) -> list[dict[str, Any]]:
    return [
        {"media": content_hash(Media("image", path)), "caption": f"of {Path(path).stem}"} for path in paths
    ]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The folder on a server: its address, and what was asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


# ------------------------------------------------------------------------------------------------ the key


def test_a_picture_has_one_hash_wherever_it_lies(tmp_path: Path, web):
    path = Path(paint(tmp_path / "a.png", 7))
    (tmp_path / "b.jpeg").write_bytes(path.read_bytes())
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "deep/c.png")
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"image": {"bytes": path.read_bytes(), "path": "d.png"}}]),
        tmp_path / "t.parquet",
    )
    (cell,) = pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist()
    sources = [str(path), str(tmp_path / "b.jpeg"), f"{tmp_path}/z.zip/deep/c.png", cell["image"]["bytes"]]
    sources += [f"{web[0]}/a.png"]
    urls = Urls(["127.0.0.1"])
    found = {content_hash(Media("image", source), urls=urls) for source in sources}
    assert len(found) == 1
    assert content_hash(Media("image", paint(tmp_path / "e.png", 8))) not in found
    with Image.open(path) as picture:
        picture.save(tmp_path / "again.bmp")
    assert content_hash(Media("image", str(tmp_path / "again.bmp"))) not in found


def test_a_clip_of_frames_is_all_of_them_in_their_order(tmp_path: Path):
    frames = [paint(tmp_path / f"{i}.png", i) for i in (1, 2, 10)]
    whole = content_hash(Media("video", tuple(frames)))
    assert content_hash(Media("video", str(tmp_path))) == whole
    others = [frames[:2], [*frames[::-1]], [frames[0], frames[0], frames[2]]]
    assert whole not in {content_hash(Media("video", tuple(other))) for other in others}


def test_pixels_are_hashed_as_pixels():
    first, second = (Media("image", (Image.new("RGB", (4, 4), colour),)) for colour in ("red", "blue"))
    assert content_hash(first) == content_hash(Media("image", (Image.new("RGB", (4, 4), "red"),)))
    assert content_hash(first) != content_hash(second)
    assert content_hash(first) != content_hash(Media("image", (Image.new("RGB", (2, 8), "red"),)))


# ------------------------------------------------------------------------------------- what is remembered


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Media whose bytes were read."""
    found: list[object] = []

    def noted(media: Media, **options: Any) -> str:
        found.append(media.source)
        return content_hash(media, **options)

    monkeypatch.setattr(hashes, "content_hash", noted)
    return found


def test_a_file_is_read_once_by_all_processes_and_again_when_it_changes(tmp_path: Path, reads):
    path = paint(tmp_path / "a.png", 1)
    kept = str(tmp_path / "c.hashes")
    first = KnownHashes(kept)(Media("image", path))
    known = KnownHashes(kept)
    assert known(Media("image", path)) == known(Media("image", path)) == first
    assert reads == [path]
    paint(tmp_path / "a.png", 200)
    assert KnownHashes(kept)(Media("image", path)) == known(Media("image", path)) != first
    assert len(reads) == 3, "by each of the two once"
    Path(path).unlink()
    with pytest.raises(MediaError, match=r"a\.png: no such file"):
        known(Media("image", path))


def test_an_archive_a_folder_of_frames_and_an_address_are_read_once(tmp_path: Path, reads, web):
    (tmp_path / "frames").mkdir()
    paint(tmp_path / "frames/1.png", 1)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(tmp_path / "frames/1.png", "1.png")
    media = [
        Media("image", f"{tmp_path}/z.zip/1.png"),
        Media("video", f"{tmp_path}/frames"),
        Media("image", f"{web[0]}/frames/1.png"),
    ]
    known = KnownHashes(str(tmp_path / "c.hashes"), Urls(["127.0.0.1"]))
    found = [known(each) for each in media]
    again = KnownHashes(str(tmp_path / "c.hashes"))  # which may not even ask the host
    assert [again(each) for each in media] == found
    assert len(reads) == 3
    assert web[1] == ["/frames/1.png"]
    paint(tmp_path / "frames/2.png", 2)
    assert again(media[1]) != found[1]


def test_bytes_are_hashed_each_time_and_a_torn_or_locked_memory_does_no_harm(tmp_path: Path, reads):
    kept = tmp_path / "c.hashes"
    path = paint(tmp_path / "a.png", 1)
    content = Path(path).read_bytes()
    known = KnownHashes(str(kept))
    assert known(Media("image", content)) == known(Media("image", path)) == content_hash(Media("image", path))
    assert reads == [content, path]
    kept.write_text("0123 torn" + kept.read_text() + "f" * 50)
    assert KnownHashes(str(kept))(Media("image", path)) == known(Media("image", path))
    nowhere = KnownHashes(str(tmp_path / "absent" / "c.hashes"))
    assert nowhere(Media("image", path)) == known(Media("image", path))


# ------------------------------------------------------------------------------------------------ the join


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_captions_are_filled_in_where_they_lack(tmp_path: Path, kind):
    paths = [paint(tmp_path / f"{i}.png", 10 * i) for i in range(3)]
    rows = [*caption_rows(paths[:2]), {"media": None, "caption": None}, {"media": "f" * 40, "caption": None}]
    file = str(tmp_path / f"captions.{kind}")
    if kind == "jsonl":
        jsonl(Path(file), *rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    captions = Captions(file)
    media = [Media("image", path) for path in paths]
    joined = captions.join(about(*media[:2]))
    assert joined is not None
    assert joined.captions == ("of 0", "of 1")
    assert joined.media == tuple(media[:2])
    same = captions.join(about(Media("image", Path(paths[1]).read_bytes())))
    assert same is not None
    assert same.captions == ("of 1",)
    assert captions.join(about(media[2])) is None
    assert captions.join(about(media[0], media[2])) is None, "one of two is not enough"
    shipped = about(media[0], captions=("its own",))
    assert captions.join(shipped) is shipped
    text = PreferenceExample("t", "text", "q", 1, ("a", "b"))
    assert captions.join(text) is text


def test_several_files_are_one_and_a_failure_before_a_caption_is_none(tmp_path: Path):
    paths = [paint(tmp_path / f"{i}.png", 10 * i) for i in range(2)]
    first, second = caption_rows(paths)
    failed = {**first, "caption": None, "error": "refused"}
    files = [jsonl(tmp_path / "a.jsonl", failed, first), jsonl(tmp_path / "b.jsonl", second, first, failed)]
    captions = Captions(files)
    assert [captions.join(about(Media("image", path))).captions for path in paths] == [("of 0",), ("of 1",)]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"media": "a", "caption": "x"}, {"media": "b", "caption": "x"}, {"media": "a", "caption": "y"}],
            r"c\.jsonl row 3: another caption of the same media \(a\) than in .*c\.jsonl row 1; remove one",
        ),
        ([{"media": "a"}], r"c\.jsonl row 1: needs 'media', a content hash, and 'caption'"),
        ([{"media": "a", "caption": 3}], r"c\.jsonl row 1: 'media' and 'caption' must be text or null"),
        ([{"media": "a", "caption": None}], r"c\.jsonl: holds no captions"),
        ([], r"c\.jsonl: holds no captions"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path, rows, message):
    captions = Captions(jsonl(tmp_path / "c.jsonl", *rows))
    with pytest.raises(ValueError, match=message):
        captions.join(about(Media("image", paint(tmp_path / "a.png", 1))))


def test_what_is_not_there_is_one_line(tmp_path: Path):
    with pytest.raises(ValueError, match=r"absent\.jsonl: no such file; experiments/caption\.py writes one"):
        CaptionPreferenceDataModule(Numbers(1), captions=str(tmp_path / "absent.jsonl"))
    file = jsonl(tmp_path / "c.jsonl", {"media": "a", "caption": "x"})
    media = Media("image", str(tmp_path / "gone.png"), "pairs.jsonl row 3 field 'image'")
    with pytest.raises(ValueError, match=r"pairs\.jsonl row 3 field 'image': .*gone\.png: no such file"):
        Captions(file).join(about(media))
    with pytest.raises(ValueError, match=r"example 'x' of s: http://h/1\.png: addresses are not read unless"):
        Captions(file).join(about(Media("image", "http://h/1.png")))


# ------------------------------------------------------------------------------------------ the data modules


def rows(folder: Path, count: int) -> Rows:
    """Rows with a picture each and no captions."""
    made = [
        {"id": str(i), "prompt": "q", "candidate_1": "a", "candidate_2": "b", "winner": 1,
         "image": Path(paint(folder / f"{i}.png", 10 * i)).name}
        for i in range(count)
    ]  # fmt: skip
    return Rows(jsonl(folder / "pairs.jsonl", *made))


def captioned(folder: Path, numbers: list[int]) -> str:
    return jsonl(folder / "captions.jsonl", *caption_rows([str(folder / f"{i}.png") for i in numbers]))


@pytest.mark.parametrize("workers", [0, 2])
def test_stage_2_learns_what_has_captions_and_counts_the_rest(tmp_path: Path, workers):
    source = rows(tmp_path, 12)
    data = CaptionPreferenceDataModule(
        source, source, captions=captioned(tmp_path, [0, 2, 3, 5, 7, 8, 9, 11]), replay=Numbers(9, "old"),
        replay_ratio=(2, 1), batch_size=3, num_workers=workers,
    )  # fmt: skip
    batches = list(data.train_dataloader())
    new = [example for batch in batches for example in batch if example.task_type != "text"]
    assert sorted(int(example.id) for example in new) == [0, 2, 3, 5, 7, 8, 9, 11]
    assert {(example.captions, example.media) for example in new} == {
        ((f"of {example.id}",), ()) for example in new
    }
    assert max(batch.uncaptioned for batch in batches) == 4
    assert {batch.dropped for batch in batches} == {0}
    held = [example for batch in data.val_dataloader() for example in batch]
    assert [example.captions for example in held] == [
        (f"of {i}",) for i in range(12) if i not in (1, 4, 6, 10)
    ]


def test_cmkd_judges_the_captions_and_shows_the_pictures(tmp_path: Path):
    source = rows(tmp_path, 4)
    data = MultimodalPreferenceDataModule(source, captions=captioned(tmp_path, [0, 1, 3]), batch_size=1)
    judged = [example for batch in data.distillation_batches() for example in batch]
    assert [(example.id, example.captions) for example in judged] == [(i, (f"of {i}",)) for i in "013"]
    shown = [example for batch in data.train_dataloader() for example in batch]
    assert sorted((e.id, e.captions[0], e.media[0].frames[0].getpixel((0, 0))) for e in shown) == [
        (str(i), f"of {i}", (10 * i,) * 3) for i in (0, 1, 3)
    ]


def test_when_none_has_a_caption_the_run_ends_with_one_line(tmp_path: Path):
    source, strange = rows(tmp_path, 3), jsonl(tmp_path / "c.jsonl", {"media": "f" * 40, "caption": "x"})
    why = r"3 were left out, whose media have no caption in .*c\.jsonl, example '\d' of 'generic' first"
    data = CaptionPreferenceDataModule(source, source, captions=strange, batch_size=1)
    with pytest.raises(ValueError, match=f"the training data hold fewer .*{why}"):
        next(iter(data.train_dataloader()))
    with pytest.raises(ValueError, match=f"the validation data hold fewer .*{why}"):
        next(iter(data.val_dataloader()))
    cmkd = MultimodalPreferenceDataModule(source, captions=strange, batch_size=1)
    with pytest.raises(ValueError, match=f"the training data hold fewer .*{why}"):
        next(iter(cmkd.distillation_batches()))
    without = CaptionPreferenceDataModule(source, batch_size=1)
    with pytest.raises(ValueError, match="has no captions; experiments/caption.py writes some"):
        next(iter(without.train_dataloader()))


@pytest.mark.parametrize(("said", "count"), [("{0}", 1), ("[{0}, {0}]", 2)])
def test_the_command_line_takes_one_file_or_several(tmp_path: Path, said, count):
    file = jsonl(tmp_path / "c.jsonl", {"media": "a", "caption": "x"})
    parser = ArgumentParser()
    parser.add_class_arguments(CaptionPreferenceDataModule, "data")
    data = parser.instantiate(parser.parse_args([f"--data.captions={said.format(file)}"])).data
    assert data.captions.files == [file] * count


def test_other_captions_are_other_data(tmp_path: Path):
    source = rows(tmp_path, 3)

    def described(numbers: list[int]) -> str:
        file = captioned(tmp_path, numbers)
        return CaptionPreferenceDataModule(source, captions=file, batch_size=1).describe()

    assert described([0, 1]) != described([0, 2])
    assert described([0, 1]) == described([0, 1])


def test_a_resume_goes_on_after_what_was_left_out(tmp_path: Path):
    source = rows(tmp_path, 10)
    file = captioned(tmp_path, [0, 2, 4, 6, 8, 9])

    def loader():
        return CaptionPreferenceDataModule(
            source, captions=file, batch_size=1, shuffle_buffer=4
        ).train_dataloader()

    whole = [batch[0].id for batch in loader()]
    data = loader()
    for _, _batch in zip(range(3), data, strict=False):
        pass
    again = loader()
    again.load_state_dict(data.state_dict())
    assert [batch[0].id for batch in again] == whole[3:]


class Still(LightningModule):
    """Learns nothing."""

    def training_step(self, batch, batch_idx):
        return None

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return None


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
def test_the_report_says_how_many_have_no_captions(tmp_path: Path, capsys, caplog):
    source = rows(tmp_path, 5)
    data = MultimodalPreferenceDataModule(
        source, source, captions=captioned(tmp_path, [1, 2, 4]), batch_size=1
    )
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[DataReport()], logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    caplog.set_level("INFO")
    trainer.fit(Still(), datamodule=data)
    assert trainer.callback_metrics["data/dropped"] == 2
    printed = capsys.readouterr()
    told = caplog.text + printed.err + printed.out
    assert "epoch 0: 2 examples left out, whose media have no caption" in told
    assert "validation: 2 examples left out, whose media have no caption" in told
