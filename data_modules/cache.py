"""Decoded frames kept on disk, found again by the content they were made of.

Own code, of few lines: diskcache, the usual choice, has had no release since 2023 and stores pickles, which
whoever can write to the folder can make run. Here an entry is a zip of PNG files.
"""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

Frames = tuple[Image.Image, ...]


@dataclass
class MediaCache:
    """A folder of decoded frames that is kept below a size; what was used least recently goes first.

    Several processes may share it. Each tidies up when it has itself written a twentieth of ``max_bytes``, so
    the folder may exceed its size by that much per process.

    Attributes:
        folder: Where; made when it is first written to.
        max_bytes: Its size.
    """

    folder: str
    max_bytes: int = 10 * 1024**3

    def __post_init__(self) -> None:
        self._written = 0

    def get(self, key: str) -> Frames | None:
        """The frames of a key; ``None`` if they are not there, or damaged."""
        path = self._path(key)
        try:
            with zipfile.ZipFile(path) as entry:
                frames = tuple(_open(entry.read(name)) for name in entry.namelist())
            os.utime(path)
        except (OSError, zipfile.BadZipFile):
            return None
        return frames

    def put(self, key: str, frames: Frames) -> None:
        """Keep frames: written aside and renamed, so that none is ever half there."""
        content = _pack(frames)
        if len(content) > self.max_bytes:
            return
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            file.write(content)
        os.replace(file.name, path)
        self._written += len(content)
        if self._written > self.max_bytes / 20:
            self.tidy()

    def tidy(self) -> None:
        """Remove what was used least recently, down to ``max_bytes``."""
        entries = sorted((_stat(path), path) for path in Path(self.folder).glob("??/*"))
        excess = sum(size for (_, size), _ in entries) - self.max_bytes
        for (_, size), path in entries:
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size
        self._written = 0

    def _path(self, key: str) -> Path:
        return Path(self.folder) / key[:2] / f"{key}.zip"


def _stat(path: Path) -> tuple[int, int]:
    """When it was used, and its size; another process may have removed it meanwhile."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _pack(frames: Frames) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as entry:  # stored: PNG is compressed already
        for i, frame in enumerate(frames):
            content = io.BytesIO()
            frame.save(content, "png", compress_level=1)
            entry.writestr(f"{i:04d}.png", content.getvalue())
    return packed.getvalue()


def _open(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as frame:
        return frame.convert("RGB")
