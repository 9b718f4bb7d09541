"""Pictures that look alike are found whatever their size and format; others are not."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image, ImageFilter

from data_modules.media import Decoder
from data_modules.pictures import THRESHOLD, fingerprint, near_pictures, picture_prints
from lit_msrl.types import Media, PreferenceExample
from tests.data_modules.made import REALDATA, needs_realdata, photograph


def encoded(picture: Image.Image, kind: str, **options) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return Image.open(buffer).convert("RGB")


CHANGES = {
    "smaller": lambda p: p.resize((96, 96)),
    "another shape": lambda p: p.resize((300, 200)),
    "low quality": lambda p: encoded(p, "JPEG", quality=15),
    "another format": lambda p: encoded(p.resize((200, 200)), "WEBP", quality=60),
    "softened": lambda p: p.filter(ImageFilter.GaussianBlur(2)),
    "brighter": lambda p: p.point(lambda v: min(255, v + 20)),
}


def prints(*pictures: Image.Image) -> list[tuple[str, int]]:
    found = [fingerprint(picture) for picture in pictures]
    assert None not in found
    return [(f"p{i}", own) for i, own in enumerate(found) if own is not None]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_picture_is_found(change):
    known = prints(*map(photograph, range(30)))
    (match,) = near_pictures(prints(CHANGES[change](photograph(17))), known)
    assert match.benchmark == "p17"
    assert match.distance <= THRESHOLD


def test_other_pictures_are_not_found():
    assert not list(
        near_pictures(prints(*map(photograph, range(100, 130))), prints(*map(photograph, range(30))))
    )
    assert not list(near_pictures(prints(photograph(0)), []))


def test_the_distance_is_the_number_of_bits_that_differ():
    known = [("far", 0b1111), ("near", 0b1011), ("top", 1 << 63)]
    assert list(near_pictures([("a", 0b1000)], known)) == [
        ("a", "near", 2),
    ]
    assert list(near_pictures([("b", 1 << 63)], known)) == [("b", "top", 0)]
    assert not list(near_pictures([("c", (1 << 64) - 1)], known))


def test_blank_pictures_resemble_nothing():
    assert fingerprint(Image.new("RGB", (64, 64), "white")) is None
    assert fingerprint(encoded(Image.new("RGB", (64, 64), (9, 9, 9)), "JPEG", quality=10)) is None


def test_of_an_example_only_pictures_have_prints_and_what_is_unreadable_is_said_once(tmp_path: Path):
    photograph(1).save(tmp_path / "one.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    media = tuple(Media("image", str(tmp_path / name), "image") for name in ("one.png", "bad.png"))
    example = PreferenceExample("e", "image generation", "?", 1, media=media)
    clip = (Media("video", str(tmp_path / "clip.mp4")),)
    film = PreferenceExample("f", "video understanding", "?", 1, ("a", "b"), clip)
    unreadable: list[str] = []
    assert not list(picture_prints(film, Decoder(), unreadable))
    for _ in range(2):
        assert list(picture_prints(example, Decoder(), unreadable)) == [("e", fingerprint(photograph(1)))]
    assert len(unreadable) == 1
    assert "bad.png: not a readable picture" in unreadable[0]


@needs_realdata
@pytest.mark.slow
def test_real_photographs_of_different_things_are_told_apart():
    folders = sorted(p for p in (REALDATA / "dreambooth_photos").iterdir() if p.is_dir())
    photos = [Image.open(next(iter(sorted(folder.glob("*.jpg"))))).convert("RGB") for folder in folders]
    assert len(photos) > 5
    known = prints(*photos)
    found = list(
        near_pictures(prints(*(encoded(p.resize((320, 320)), "JPEG", quality=40) for p in photos)), known)
    )
    assert [(m.training, m.benchmark) for m in found] == [(name, name) for name, _ in known]
