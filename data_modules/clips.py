"""Clips, read with PyAV."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import av.container
import av.error
from PIL import Image

from data_modules.content import Content, MediaError, one_line
from data_modules.guards import CLIPS, MAX_FRAMES


@dataclass(frozen=True)
class ClipFacts:
    """What a clip's header and packets say; nothing is decoded for it.

    Attributes:
        width: Of a frame.
        height: Of a frame.
        frames: How many packets, one each.
        declared: How many frames the header declares; 0 if it does not.
        seconds: How long it plays; 0 if its rate is not known.
    """

    width: int
    height: int
    frames: int
    declared: int
    seconds: float


def probe(content: Content, name: str, *, packets: bool = True) -> ClipFacts:
    """Read a clip's header, and count its packets unless told not to (``frames`` is then ``declared``).

    Raises:
        MediaError: It is no clip.
    """
    with _opened(content, name) as container:
        if not container.streams.video:
            raise MediaError(f"{name}: has no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise MediaError(f"{name}: not a readable clip (its codec is not known)")
        rate, declared = stream.average_rate, stream.frames
        width, height = stream.codec_context.width, stream.codec_context.height
        counted = islice(container.demux(stream), MAX_FRAMES + 1) if packets else ()
        count = sum(1 for packet in counted if packet.size) if packets else declared
    return ClipFacts(width, height, count, declared, count / float(rate) if rate else 0.0)


def pick(content: Content, name: str, wanted: set[int], max_pixels: int) -> Iterator[tuple[int, Image.Image]]:
    """The wanted frames with their numbers, as far as they can be decoded.

    Args:
        content: The clip.
        name: Of it, for messages.
        wanted: Numbers of frames.
        max_pixels: Larger frames are refused before there is room for them, whatever the header said.

    Raises:
        MediaError: It is no clip.
    """
    left = set(wanted)
    with _opened(content, name) as container:
        container.streams.video[0].codec_context.options = {"max_pixels": str(max_pixels)}
        for i, frame in enumerate(container.decode(video=0)):
            if i in left:
                left.remove(i)
                yield i, frame.to_image()
            if not left:
                break


@contextmanager
def _opened(content: Content, name: str) -> Iterator[av.container.InputContainer]:
    if isinstance(content, io.BytesIO):
        content.seek(0)
    try:
        file = str(content) if isinstance(content, Path) else content
        with av.open(file, "r", container_options=CLIPS, metadata_errors="ignore") as container:
            yield container
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(f"{name}: not a readable clip ({one_line(error)})") from error
