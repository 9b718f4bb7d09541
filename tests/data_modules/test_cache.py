"""Decoded frames are kept, found again, and thrown away in the order of their use."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from data_modules import media as media_module
from data_modules.cache import MediaCache
from data_modules.media import Decoder, MediaError
from lit_msrl.types import Media
from tests.data_modules.made import level


def noise(seed: int, size=(40, 30)) -> bytes:
    content = io.BytesIO()
    pixels = bytes((i * (seed + 7)) % 251 for i in range(size[0] * size[1] * 3))
    Image.frombytes("RGB", size, pixels).save(content, "jpeg")
    return content.getvalue()


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("??/*.zip"))


def test_a_kept_clip_is_the_same_clip_and_is_not_decoded_again(tmp_path, clip, monkeypatch):
    path = clip(12)
    decoder = Decoder(max_pixels=400, cache=MediaCache(str(tmp_path / "kept")))
    first = decoder(Media("video", str(path))).frames
    assert [frame.tobytes() for frame in first] == [
        frame.tobytes() for frame in Decoder(max_pixels=400)(Media("video", str(path))).frames
    ]
    monkeypatch.setattr(media_module, "pick", None)  # decoding would fail
    again = decoder(Media("video", path.read_bytes())).frames  # by content, wherever it lies
    assert [frame.tobytes() for frame in again] == [frame.tobytes() for frame in first]
    assert len(entries(tmp_path / "kept")) == 1


def test_other_bounds_or_another_content_are_another_entry(tmp_path):
    cache = MediaCache(str(tmp_path))
    for decoder in (Decoder(cache=cache), Decoder(max_pixels=100, cache=cache)):
        for seed in (1, 2):
            (frame,) = decoder(Media("image", noise(seed))).frames
            assert frame.width * frame.height <= decoder.max_pixels
    assert len(entries(tmp_path)) == 4


def test_a_damaged_entry_is_made_again_and_a_refusal_is_not_kept(tmp_path):
    cache = MediaCache(str(tmp_path))
    decoder = Decoder(cache=cache)
    picture = decoder(Media("image", noise(1))).frames[0]
    (entry,) = entries(tmp_path)
    entry.write_bytes(entry.read_bytes()[:50])
    assert decoder(Media("image", noise(1))).frames[0].tobytes() == picture.tobytes()
    with pytest.raises(MediaError):
        decoder(Media("image", b"no picture"))
    assert entries(tmp_path) == [entry]
    assert not list(tmp_path.rglob("*.partial"))


def test_what_was_used_least_recently_goes_first(tmp_path):
    cache = MediaCache(str(tmp_path))
    frames = (Image.effect_noise((50, 50), 90).convert("RGB"),)
    for i, key in enumerate(("aa", "bb", "cc")):
        cache.put(key, frames)
        os.utime(tmp_path / key / f"{key}.zip", ns=(i, i))
    size = entries(tmp_path)[0].stat().st_size
    assert cache.get("aa") is not None  # used just now
    MediaCache(str(tmp_path), max_bytes=2 * size).tidy()
    assert [path.stem for path in entries(tmp_path)] == ["aa", "cc"]


def test_the_folder_stays_near_its_size(tmp_path):
    frames = (Image.effect_noise((50, 50), 90).convert("RGB"),)
    cache = MediaCache(str(tmp_path), max_bytes=50_000)
    for i in range(60):
        cache.put(f"{i:02d}", frames)
    assert 30_000 < sum(path.stat().st_size for path in entries(tmp_path)) <= 50_000 * 1.2
    MediaCache(str(tmp_path / "small"), max_bytes=10).put("aa", frames)
    assert not (tmp_path / "small").exists()


def test_a_clip_of_frames_is_sampled_in_the_order_of_numbers(tmp_path):
    for i in range(12):
        Image.new("RGB", (32, 32), (10 * i,) * 3).save(tmp_path / f"f{i}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    decoder = Decoder(num_frames=3)
    assert [level(frame) for frame in decoder(Media("video", str(tmp_path))).frames] == [2, 6, 10]
    files = tuple(str(tmp_path / f"f{i}.png") for i in (1, 3, 5))
    assert [level(frame) for frame in decoder(Media("video", files)).frames] == [1, 3, 5]
    assert decoder.sizes(Media("video", files)) == [(32, 32)] * 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match="a folder without pictures"):
        decoder(Media("video", str(tmp_path / "empty")))
    with pytest.raises(TypeError, match="not decoded yet"):
        Media("video", files).frames  # noqa: B018 - the property raises
