"""Pictures by Pillow, clips by PyAV, both bounded: a file that cannot be read says so in one line."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from PIL import Image, ImageOps

from data_modules.cache import Frames, MediaCache
from data_modules.clips import ClipFacts, pick, probe
from data_modules.content import Content, MediaError, digest, frame_files, load, one_line
from data_modules.guards import MAX_FRAMES, PICTURES
from data_modules.urls import Urls
from lit_msrl.types import Media, PreferenceExample

__all__ = ["Decoder", "MediaError", "decode", "sample_indices"]
REFUSED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)
Part = tuple[str, Content]  # a file's name, for messages, and its content


@dataclass(frozen=True)
class Decoder:
    """How media become frames, and what is refused.

    Attributes:
        num_frames: Frames taken from a clip, the middle of as many equal stretches.
        max_pixels: Frames are shrunk to at most this many pixels, in proportion.
        max_source_pixels: Pictures and clips larger than this are refused before they are unpacked.
        max_seconds: Longer clips are refused.
        max_bytes: Larger files are refused.
        urls: Which addresses may be read; by default none.
        cache: Where frames are kept, so that each picture and clip is decoded once; by default nowhere.
    """

    num_frames: int = 3
    max_pixels: int = 1024 * 1024
    max_source_pixels: int = 64 * 1024 * 1024
    max_seconds: float = 600.0
    max_bytes: int = 512 * 1024 * 1024
    urls: Urls | None = None
    cache: MediaCache | None = None

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
        files, encoded = self._parts(media)
        if not files:
            return replace(media, source=self._resampled(media))
        if self.cache is None:
            return replace(media, source=self._decode(files, encoded))
        bounds = (encoded, self.num_frames, self.max_pixels, self.max_source_pixels, self.max_seconds)
        key = digest([content for _, content in files] + [io.BytesIO(repr(bounds).encode())])
        frames = self.cache.get(key)
        if frames is None:
            frames = self._decode(files, encoded)
            self.cache.put(key, frames)
        return replace(media, source=frames)

    def example(self, example: PreferenceExample) -> PreferenceExample:
        """Decode an example's media.

        Raises:
            MediaError: As above, with the file, row and field in front, or the example's id.
        """
        return replace(example, media=tuple(self._named(example, media) for media in example.media))

    def sizes(self, media: Media) -> list[tuple[int, int]]:
        """Width and height of the frames that decoding would give; only headers are read.

        Raises:
            MediaError: As when decoding, as far as headers tell.
        """
        files, encoded = self._parts(media)
        if not files:
            return [frame.size for frame in self._resampled(media)]
        if not encoded:
            return [self._picture_size(content, name) for name, content in files]
        name, content = files[0]
        facts = probe(content, name, packets=False)
        self._check(facts, name)
        return [self._shrunk(facts.width, facts.height)] * self.num_frames

    def _named(self, example: PreferenceExample, media: Media) -> Media:
        try:
            return self(media)
        except MediaError as error:
            where = media.origin or f"example {example.id!r} of {example.source or 'unnamed source'}"
            raise MediaError(f"{where}: {error}") from error

    def _parts(self, media: Media) -> tuple[list[Part], bool]:
        """The files that are needed, none if the frames are there already, and whether they are one clip."""
        frames = frame_files(media)
        if frames is not None:
            return [self._load(frames[i]) for i in sample_indices(len(frames), self.num_frames)], False
        if isinstance(media.source, tuple):
            return [], False
        name, content = self._load(media.source)
        return [(name or f"{media.kind} of {len(media.source)} bytes", content)], media.kind == "video"

    def _load(self, source: str | bytes) -> Part:
        content = load(source, max_bytes=self.max_bytes, urls=self.urls)
        return source if isinstance(source, str) else "", content

    def _resampled(self, media: Media) -> Frames:
        count = len(media.frames)
        indices = sample_indices(count, self.num_frames) if media.kind == "video" else range(count)
        return tuple(self._shrink(media.frames[i]) for i in indices)

    def _decode(self, files: list[Part], encoded: bool) -> Frames:
        if encoded:
            return self._clip(*files[0])
        return tuple(self._picture(name, content) for name, content in files)

    def _picture(self, name: str, content: Content) -> Image.Image:
        with self._open(content, name) as picture:
            return self._shrink(ImageOps.exif_transpose(_flatten(picture)))

    def _picture_size(self, content: Content, name: str) -> tuple[int, int]:
        with self._open(content, name) as picture:
            sideways = picture.getexif().get(0x0112, 1) >= 5  # EXIF orientations that turn a quarter
            return self._shrunk(*(picture.size[::-1] if sideways else picture.size))

    @contextmanager
    def _open(self, content: Content, name: str) -> Iterator[Image.Image]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                picture = Image.open(content, formats=PICTURES)
            with picture:
                self._check_size(picture.width, picture.height, name)
                yield picture
        except MediaError:
            raise
        except REFUSED as error:
            raise MediaError(f"{name}: not a readable picture ({one_line(error)})") from error

    def _clip(self, name: str, content: Content) -> Frames:
        facts = probe(content, name)
        self._check(facts, name)
        if facts.frames > MAX_FRAMES:
            raise MediaError(f"{name}: has more than {MAX_FRAMES} frames")
        if not facts.frames:
            raise MediaError(f"{name}: has no frames")
        if facts.frames < facts.declared:
            raise MediaError(f"{name}: truncated, holds {facts.frames} of its {facts.declared} frames")
        wanted = sample_indices(facts.frames, self.num_frames)
        found = {
            i: self._shrink(frame) for i, frame in pick(content, name, set(wanted), self.max_source_pixels)
        }
        if wanted[-1] not in found:
            raise MediaError(
                f"{name}: truncated or damaged, frame {wanted[-1]} of {facts.frames} cannot be decoded"
            )
        return tuple(found[i] for i in wanted)

    def _check(self, facts: ClipFacts, name: str) -> None:
        self._check_size(facts.width, facts.height, name)
        if facts.seconds > self.max_seconds:
            raise MediaError(
                f"{name}: {facts.seconds:.0f} seconds are more than max_seconds={self.max_seconds:g}"
            )

    def _check_size(self, width: int, height: int, name: str) -> None:
        if width * height > self.max_source_pixels:
            raise MediaError(
                f"{name}: {width}x{height} is more than max_source_pixels={self.max_source_pixels}"
            )

    def _shrunk(self, width: int, height: int) -> tuple[int, int]:
        excess = width * height / self.max_pixels
        if excess <= 1:
            return width, height
        return max(1, int(width / excess**0.5)), max(1, int(height / excess**0.5))

    def _shrink(self, picture: Image.Image) -> Image.Image:
        size = self._shrunk(*picture.size)
        return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)


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


def _flatten(picture: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes white."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")
