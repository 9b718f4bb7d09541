"""Files made to harm, and good ones damaged at random: refused in one line, within bounds."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_modules.media import Decoder, MediaError
from lit_msrl.types import Media

SMALL = Decoder(max_pixels=64 * 64, max_source_pixels=512 * 512, max_bytes=100_000)


@cache
def good(kind: str) -> bytes:
    content = io.BytesIO()
    if kind in ("mp4", "matroska"):
        with av.open(content, "w", format=kind) as container:
            stream = container.add_stream("mpeg4", rate=8)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for i in range(6):
                frame = Image.effect_noise((64, 64), 10.0 * i + 1).convert("RGB")
                container.mux(stream.encode(av.VideoFrame.from_image(frame)))
            container.mux(stream.encode())
    else:
        Image.effect_noise((40, 30), 50).convert("RGB").save(content, kind)
    return content.getvalue()


damages = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=8)), min_size=1, max_size=6
)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "bmp", "mp4", "matroska"])
@given(damages, st.floats(0.2, 1))
@settings(max_examples=60)
def test_a_damaged_file_is_read_or_refused_in_one_line(kind: str, damage: list, kept: float) -> None:
    content = bytearray(good(kind))
    for place, change in damage:
        start = int(place * len(content))
        content[start : start + len(change)] = change
    kept_bytes = bytes(content[: int(kept * len(content))])
    frames = read(Media("video" if kind in ("mp4", "matroska") else "image", kept_bytes))
    assert all(frame.mode == "RGB" and frame.width * frame.height <= 64 * 64 for frame in frames)


def read(media: Media) -> tuple[Image.Image, ...]:
    """The frames, or none where it is refused as it should be."""
    try:
        return SMALL(media).frames
    except MediaError as error:
        said = str(error)
    assert "\n" not in said
    return ()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    written = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


@pytest.mark.parametrize(
    ("side", "said"), [(9_000, "9000x9000 is more than max_source_pixels"), (60_000, "bomb")]
)
def test_a_bomb_of_pixels_is_not_unpacked(side: int, said: str) -> None:
    bomb = png(side, side, (b"IDAT", zlib.compress(bytes(1_000_000))))
    assert len(bomb) < 2_000
    with pytest.raises(MediaError, match=said):
        Decoder()(Media("image", bomb))


def test_a_bomb_of_text_is_not_unpacked() -> None:
    text = b"note\0\0" + zlib.compress(bytes(100_000_000))
    bomb = png(4, 4, (b"zTXt", text), (b"IDAT", zlib.compress(bytes(4 * 13))))
    with pytest.raises(MediaError, match="not a readable picture"):
        Decoder()(Media("image", bomb))


def test_a_picture_that_is_a_program_is_not_run(tmp_path: Path, monkeypatch) -> None:
    def started(*args: object, **options: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", started)
    path = tmp_path / "picture.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with Image.open(path) as picture:
        assert picture.format == "EPS"  # Pillow would start Ghostscript
    with pytest.raises(MediaError, match="not a readable picture"):
        Decoder()(Media("image", str(path)))


@pytest.mark.parametrize("playlist", ["#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
                                      "ffconcat version 1.0\nfile '{}'\n"])  # fmt: skip
def test_a_clip_that_names_another_file_does_not_open_it(playlist: str, tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(good("mp4"))
    path = tmp_path / "clip.mp4"
    path.write_text(playlist.format("secret.mp4"))
    with pytest.raises(MediaError, match="not a readable clip"):
        Decoder()(Media("video", str(path)))


def test_a_clip_of_endless_frames_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_modules.media.MAX_FRAMES", 5)
    with pytest.raises(MediaError, match="more than 5 frames"):
        Decoder()(Media("video", good("mp4")))


def test_frames_larger_than_the_header_says_are_refused_by_the_decoder(monkeypatch) -> None:
    monkeypatch.setattr(Decoder, "_check_size", lambda *size: None)  # the header lied
    with pytest.raises(MediaError, match="not a readable clip"):
        Decoder(max_source_pixels=64 * 64 - 1)(Media("video", good("mp4")))
