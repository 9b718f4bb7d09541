"""Pictures by Pillow, clips by PyAV, both bounded: a file that cannot be read says so in one line."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path

import av
import av.container
import av.error
from PIL import Image, ImageOps

from lit_msrl.types import Media, PreferenceExample


class MediaError(ValueError):
    """A picture or clip that cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Decoder:
    """How media become frames, and what is refused.

    Attributes:
        num_frames: Frames taken from a clip, the middle of as many equal stretches.
        max_pixels: Frames are shrunk to at most this many pixels, in proportion.
        max_source_pixels: Pictures and clips larger than this are refused before they are unpacked.
        max_seconds: Longer clips are refused.
        max_bytes: Larger files are refused.
    """

    num_frames: int = 3
    max_pixels: int = 1024 * 1024
    max_source_pixels: int = 64 * 1024 * 1024
    max_seconds: float = 600.0
    max_bytes: int = 512 * 1024 * 1024

    def __post_init__(self) -> None:
        if min(self.num_frames, self.max_pixels) < 1:
            raise ValueError(
                f"num_frames ({self.num_frames}) and max_pixels ({self.max_pixels}) must be at least 1"
            )

    def __call__(self, media: Media) -> Media:
        """Decode one picture or clip; what is decoded already is only sampled and shrunk.

        Raises:
            MediaError: Missing, unreadable, truncated or larger than the bounds.
        """
        if isinstance(media.source, tuple):
            frames = media.source
            indices = (
                sample_indices(len(frames), self.num_frames) if media.kind == "video" else range(len(frames))
            )
            return replace(media, source=tuple(self._shrink(frames[i]) for i in indices))
        content = self._read(media.source)
        name = _name(media)
        frames = self._clip(content, name) if media.kind == "video" else (self._picture(content, name),)
        return replace(media, source=frames)

    def example(self, example: PreferenceExample) -> PreferenceExample:
        """Decode an example's media.

        Raises:
            MediaError: As above, with the example's id in front.
        """
        try:
            return replace(example, media=tuple(self(media) for media in example.media))
        except MediaError as error:
            raise MediaError(
                f"example {example.id!r} of {example.source or 'unnamed source'}: {error}"
            ) from error

    def _read(self, source: str | bytes) -> io.BytesIO | Path:
        if isinstance(source, str) and not Path(source).is_file():
            raise MediaError(f"{source}: no such file")
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        if size > self.max_bytes:
            name = source if isinstance(source, str) else "media"
            raise MediaError(f"{name}: {size} bytes are more than max_bytes={self.max_bytes}")
        return Path(source) if isinstance(source, str) else io.BytesIO(source)

    def _picture(self, content: io.BytesIO | Path, name: str) -> Image.Image:
        try:
            with Image.open(content) as picture:
                self._check_size(picture.width, picture.height, name)
                return self._shrink(ImageOps.exif_transpose(_flatten(picture)))
        except MediaError:
            raise
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise MediaError(f"{name}: not a readable picture ({_one_line(error)})") from error

    def _clip(self, content: io.BytesIO | Path, name: str) -> tuple[Image.Image, ...]:
        try:
            total = self._count_frames(content, name)
            wanted = sample_indices(total, self.num_frames)
            found = self._pick(content, set(wanted))
        except (av.error.FFmpegError, OSError) as error:
            raise MediaError(f"{name}: not a readable clip ({_one_line(error)})") from error
        if wanted[-1] not in found:
            raise MediaError(f"{name}: truncated or damaged, frame {wanted[-1]} of {total} cannot be decoded")
        return tuple(found[i] for i in wanted)

    def _count_frames(self, content: io.BytesIO | Path, name: str) -> int:
        """The clip's frames, by its packets; nothing is decoded."""
        with _open(content) as container:
            if not container.streams.video:
                raise MediaError(f"{name}: has no video stream")
            stream = container.streams.video[0]
            self._check_size(stream.codec_context.width, stream.codec_context.height, name)
            declared, rate = stream.frames, stream.average_rate
            packets = sum(1 for packet in container.demux(stream) if packet.size)
        if not packets:
            raise MediaError(f"{name}: has no frames")
        if packets < declared:
            raise MediaError(f"{name}: truncated, holds {packets} of its {declared} frames")
        if rate and packets / float(rate) > self.max_seconds:
            seconds = packets / float(rate)
            raise MediaError(f"{name}: {seconds:.0f} seconds are more than max_seconds={self.max_seconds:g}")
        return packets

    def _pick(self, content: io.BytesIO | Path, wanted: set[int]) -> dict[int, Image.Image]:
        found: dict[int, Image.Image] = {}
        with _open(content) as container:
            for i, frame in enumerate(container.decode(video=0)):
                if i in wanted:
                    found[i] = self._shrink(frame.to_image())
                if len(found) == len(wanted):
                    break
        return found

    def _check_size(self, width: int, height: int, name: str) -> None:
        if width * height > self.max_source_pixels:
            raise MediaError(
                f"{name}: {width}x{height} is more than max_source_pixels={self.max_source_pixels}"
            )

    def _shrink(self, picture: Image.Image) -> Image.Image:
        excess = picture.width * picture.height / self.max_pixels
        if excess <= 1:
            return picture
        size = (max(1, int(picture.width / excess**0.5)), max(1, int(picture.height / excess**0.5)))
        return picture.resize(size, Image.Resampling.BICUBIC)


def decode(media: Media, *, num_frames: int = 3, max_pixels: int = 1024 * 1024) -> Media:
    """Decode one picture or clip with the default bounds (see ``Decoder``)."""
    return Decoder(num_frames=num_frames, max_pixels=max_pixels)(media)


def sample_indices(total: int, count: int) -> list[int]:
    """The middles of ``count`` equal stretches of ``total`` frames; a short clip repeats frames.

    Example:
        >>> sample_indices(12, 3), sample_indices(2, 4)
        ([2, 6, 10], [0, 0, 1, 1])
    """
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def _open(content: io.BytesIO | Path) -> av.container.InputContainer:
    if isinstance(content, io.BytesIO):
        content.seek(0)
        return av.open(content, "r")
    return av.open(str(content), "r")


def _flatten(picture: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes white."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _name(media: Media) -> str:
    return media.source if isinstance(media.source, str) else f"{media.kind} of {len(media.source)} bytes"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
