"""What a file becomes, and how a bad one is refused."""

import io
from pathlib import Path

import pytest
from PIL import Image

from data_modules.media import Decoder, MediaError, decode, sample_indices
from lit_msrl.types import Media, PreferenceExample
from tests.data_modules.made import level


def grey(size=(8, 4), mode="RGB") -> bytes:
    content = io.BytesIO()
    Image.new(mode, size).save(content, "png")
    return content.getvalue()


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [(12, 3, [2, 6, 10]), (12, 1, [6]), (4, 4, [0, 1, 2, 3]), (2, 4, [0, 0, 1, 1]), (1, 3, [0, 0, 0])],
)
def test_frames_are_the_middles_of_equal_stretches(total, count, expected):
    assert sample_indices(total, count) == expected


@pytest.mark.parametrize("as_bytes", [False, True])
def test_clip_frames_are_sampled_uniformly(clip, as_bytes):
    path = clip(12)
    media = decode(Media("video", path.read_bytes() if as_bytes else str(path)), num_frames=3)
    assert [level(frame) for frame in media.frames] == [2, 6, 10]
    assert {frame.mode for frame in media.frames} == {"RGB"}


def test_picture_from_path_and_bytes_is_rgb(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(grey(mode="L"))
    for source in (str(tmp_path / "a.png"), grey(mode="L")):
        (frame,) = decode(Media("image", source)).frames
        assert (frame.mode, frame.size) == ("RGB", (8, 4))


def test_what_is_transparent_becomes_white():
    (frame,) = decode(Media("image", grey(mode="RGBA"))).frames
    assert frame.getpixel((0, 0)) == (255, 255, 255)


def test_decoded_media_pass_through_and_clips_are_resampled():
    frames = tuple(Image.new("RGB", (2, 2), (10 * i, 0, 0)) for i in range(6))
    clip = decode(Media("video", frames), num_frames=2)
    assert clip.frames == (frames[1], frames[4])
    assert decode(Media("image", frames[:1])).frames == frames[:1]


def test_large_pictures_are_shrunk_in_proportion():
    (frame,) = decode(Media("image", grey((400, 100))), max_pixels=10_000).frames
    assert frame.size == (200, 50)


def cut(path: Path, part: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    return path


@pytest.mark.parametrize(("movflags", "part"), [("", 0.5), ("faststart", 0.7)])
def test_truncated_clip_says_so(clip, movflags, part):
    path = cut(clip(40, movflags=movflags), part)
    with pytest.raises(MediaError, match=rf"{path.name}: (truncated|not a readable clip)") as caught:
        decode(Media("video", str(path)))
    assert "\n" not in str(caught.value)


def test_clip_that_loses_frames_behind_its_index_is_truncated(clip):
    path = cut(clip(40, movflags="faststart"), 0.8)
    with pytest.raises(MediaError, match="truncated, holds .* of its 40 frames"):
        decode(Media("video", str(path)))


@pytest.mark.parametrize("content", [b"", b"no picture", grey()[:40]])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_unreadable_files_name_the_file_in_one_line(tmp_path, kind, content):
    path = tmp_path / "bad.bin"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"bad\.bin: not a readable") as caught:
        decode(Media(kind, str(path)))
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(MediaError, match="no such file"):
        decode(Media("image", str(tmp_path / "absent.png")))


@pytest.mark.parametrize(
    ("bound", "kind"),
    [
        ("max_bytes", "image"),
        ("max_source_pixels", "image"),
        ("max_source_pixels", "video"),
        ("max_seconds", "video"),
    ],
)
def test_bounds_name_themselves(clip, bound, kind):
    source = str(clip(12)) if kind == "video" else grey()
    with pytest.raises(MediaError, match=bound):
        Decoder(**{bound: 1})(Media(kind, source))  # type: ignore[arg-type]


def test_errors_name_the_example():
    example = PreferenceExample(
        "7", "image understanding", "q", 1, ("a", "b"), (Media("image", "absent.png"),), source="set"
    )
    with pytest.raises(MediaError, match="example '7' of set: absent.png: no such file"):
        Decoder().example(example)


def test_impossible_bounds_are_refused():
    with pytest.raises(ValueError, match="num_frames"):
        Decoder(num_frames=0)
