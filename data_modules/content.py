"""The bytes behind a picture or clip: from memory, a file, an archive or, where allowed, the web."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from data_modules import archives
from data_modules.urls import UrlError, Urls, is_url
from lit_msrl.types import Media

Content = io.BytesIO | Path
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


class MediaError(ValueError):
    """A picture or clip that cannot be used; the message names the file and what is wrong with it."""


def one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def exists(path: str) -> bool:
    """Whether a path, perhaps through an archive, leads to a file or folder."""
    inside = archives.split(path)
    if inside is None:
        return Path(path).exists()
    return Path(inside[0]).is_file() and archives.contains(*inside)


def require(media: Iterable[Media]) -> None:
    """Look whether the files of pictures and clips are there; none is opened, and an address is no file.

    Raises:
        MediaError: Some are not; it says how many, and of the first file, row and field.
    """
    absent = {file: each.origin for each in media for file in _files(each) if not exists(file)}
    if absent:
        file, where = next(iter(absent.items()))
        reason = "is an address, and only files are read here" if is_url(file) else "no such file"
        raise MediaError(f"{len(absent)} media files are missing, the first: {where}: {file}: {reason}")


def _files(media: Media) -> list[str]:
    sources = media.source if isinstance(media.source, tuple) else (media.source,)
    return [source for source in sources if isinstance(source, str)]


def load(source: str | bytes, *, max_bytes: int, urls: Urls | None) -> Content:
    """What a decoder can read: a path where there is a file, else the bytes.

    Raises:
        MediaError: Missing, unreadable, larger than ``max_bytes``, or an address that is not allowed.
    """
    try:
        found = _fetch(source, max_bytes, urls) if isinstance(source, str) else source
    except (archives.ArchiveError, UrlError) as error:
        raise MediaError(str(error)) from error
    size = len(found) if isinstance(found, bytes) else found.stat().st_size
    if size > max_bytes:
        name = "media" if isinstance(found, bytes) else found
        raise MediaError(f"{name}: {size} bytes are more than max_bytes={max_bytes}")
    return io.BytesIO(found) if isinstance(found, bytes) else found


def _fetch(source: str, max_bytes: int, urls: Urls | None) -> Path | bytes:
    if is_url(source):
        if urls is None:
            raise MediaError(f"{source}: addresses are not read unless data.urls.hosts names the host")
        return urls.read(source, max_bytes)
    inside = archives.split(source)
    if inside is not None and Path(inside[0]).is_file():
        return archives.read(*inside, max_bytes)
    if not Path(source).is_file():
        raise MediaError(f"{source}: no such file")
    return Path(source)


def frame_files(media: Media) -> tuple[str, ...] | None:
    """The files of a clip that comes as pictures: a list of them, or a folder; ``None`` for all other media.

    Raises:
        MediaError: The folder holds no pictures.
    """
    source = media.source
    if isinstance(source, tuple):
        return tuple(frame for frame in source if isinstance(frame, str)) or None
    if media.kind != "video" or not isinstance(source, str) or is_url(source):
        return None
    found = _listed(source)
    if found is None:
        return None
    frames = sorted((name for name in found if name.lower().endswith(PICTURES)), key=_by_number)
    if not frames:
        raise MediaError(f"{source}: a folder without pictures")
    return tuple(frames)


def _listed(folder: str) -> list[str] | None:
    """What a folder holds; ``None`` if it is none."""
    inside = archives.split(folder)
    if inside is None or not Path(inside[0]).is_file():
        return [str(path) for path in Path(folder).iterdir()] if Path(folder).is_dir() else None
    archive, member = inside
    try:
        return [f"{archive}/{name}" for name in archives.folder(archive, member)] or None
    except archives.ArchiveError as error:
        raise MediaError(str(error)) from error


def _by_number(name: str) -> list[tuple[int, str]]:
    """So that ``10.jpg`` comes after ``9.jpg``."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def content_hash(media: Media, *, max_bytes: int = 512 * 1024 * 1024, urls: Urls | None = None) -> str:
    """A name for what a picture or clip shows, wherever it lies and whatever it is called.

    Hashed are the encoded bytes, whole and as they are: those of the file, of the archive's member
    (unpacked), of the table's cell, or of what an address gives. So the same photo has the same hash in a
    folder, a zip, a Parquet column and on the web; the same photo saved anew, or with other metadata, has
    another. A clip that comes as frames has the hash of all of its frames' files in their order, however many
    are shown later. Only media that come as pixels are hashed as pixels.

    Raises:
        MediaError: It cannot be read.
    """
    files = frame_files(media)
    sources = files if files is not None else media.source
    sources = sources if isinstance(sources, tuple) else (sources,)
    return digest([_content(source, max_bytes, urls) for source in sources])


def _content(source: str | bytes | Image.Image, max_bytes: int, urls: Urls | None) -> Content:
    if isinstance(source, Image.Image):
        return io.BytesIO(f"{source.mode} {source.size}".encode() + source.tobytes())
    return load(source, max_bytes=max_bytes, urls=urls)


def digest(contents: list[Content]) -> str:
    """A hash of contents that were read."""
    total = hashlib.blake2b(digest_size=20)
    for content in contents:
        if isinstance(content, Path):
            with content.open("rb") as file:
                part = hashlib.file_digest(file, "blake2b").digest()
        else:
            part = hashlib.blake2b(content.getbuffer()).digest()
        total.update(part)
    return total.hexdigest()
