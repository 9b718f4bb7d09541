"""Files inside zip and tar archives, read where they are: nothing is unpacked, so nothing can escape.

A path goes through an archive as through a folder: ``videos.zip/a/1.mp4``.
"""

from __future__ import annotations

import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_COMPRESSED_TAR = 256 * 1024 * 1024
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, NotImplementedError)
Entry = zipfile.ZipInfo | tarfile.TarInfo


class ArchiveError(ValueError):
    """An archive, or a file in it, that cannot be read; the message names both."""


def split(path: str) -> tuple[str, str] | None:
    """The archive a path goes through and the rest of it (empty: the archive itself); ``None`` without one.

    Example:
        >>> split("a/videos.zip/b/1.mp4"), split("videos.tar"), split("a/b.mp4")
        (('a/videos.zip', 'b/1.mp4'), ('videos.tar', ''), None)
    """
    parts = Path(path).parts
    for i, part in enumerate(parts, start=1):
        if part.lower().endswith(SUFFIXES) and not Path(*parts[:i]).is_dir():
            return str(Path(*parts[:i])), "/".join(parts[i:])
    return None


def names(archive: str) -> list[str]:
    """The files of an archive, sorted; links, folders and names that lead out of it are not among them.

    Raises:
        ArchiveError: It cannot be read.
    """
    return sorted(name for name, entry in _index(archive).items() if _is_file(entry))


def contains(archive: str, member: str) -> bool:
    """Whether the archive has this file or folder."""
    wanted = _clean(member)
    return wanted in _index(archive) or wanted in _folders(archive, os.stat(archive).st_mtime_ns)


def folder(archive: str, member: str) -> list[str]:
    """The files of a folder of an archive, those of folders in it left aside; none if it is no folder.

    Raises:
        ArchiveError: It cannot be read.
    """
    index = _index(archive)
    found = _folders(archive, os.stat(archive).st_mtime_ns).get(_clean(member), [])
    return [name for name in found if _is_file(index[name])]


def read(archive: str, member: str, max_bytes: int) -> bytes:
    """The content of one file, at most ``max_bytes`` whatever the archive declares.

    Raises:
        ArchiveError: Missing, damaged, a link, encrypted or too large.
    """
    if archive.lower().endswith(("gz", "tgz")) and os.path.getsize(archive) > MAX_COMPRESSED_TAR:
        raise ArchiveError(f"{archive}: every read of a compressed tar starts at its beginning; unpack it")
    with open_member(archive, member) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ArchiveError(f"{archive}/{member}: more than max_bytes={max_bytes}")
    return content


@contextmanager
def open_member(archive: str, member: str) -> Iterator[IO[bytes]]:
    """A file of an archive, to be read.

    Raises:
        ArchiveError: Missing, damaged, a link or encrypted.
    """
    entry = _find(archive, member)
    try:
        if isinstance(entry, zipfile.ZipInfo):
            with _opened(archive, os.stat(archive).st_mtime_ns, os.getpid()).open(entry) as file:
                yield file
        else:
            with tarfile.open(archive) as opened, _extract(opened, entry) as file:
                yield file
    except _BROKEN as error:
        raise ArchiveError(f"{archive}/{member}: cannot be read ({' '.join(str(error).split())})") from error


def _extract(opened: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    file = opened.extractfile(entry)
    assert file is not None  # `_find` takes regular files only
    return file


def _find(archive: str, member: str) -> Entry:
    entry = _index(archive).get(_clean(member))
    if entry is None:
        raise ArchiveError(f"{archive}/{member}: no such file in the archive")
    if not _is_file(entry):
        raise ArchiveError(f"{archive}/{member}: is a link or a device, which is not followed")
    if isinstance(entry, zipfile.ZipInfo) and entry.flag_bits & 1:
        raise ArchiveError(f"{archive}/{member}: is encrypted")
    return entry


def _clean(member: str) -> str:
    """The name in its shortest form.

    Raises:
        ArchiveError: It leads out of the archive.
    """
    path = PurePosixPath(member.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise ArchiveError(f"{member}: leads out of the archive")
    return str(path)


def _index(archive: str) -> Mapping[str, Entry]:
    try:
        return _indexed(archive, os.stat(archive).st_mtime_ns)
    except _BROKEN as error:
        raise ArchiveError(f"{archive}: not a readable archive ({' '.join(str(error).split())})") from error


@lru_cache(maxsize=16)
def _opened(archive: str, modified: int, process: int) -> zipfile.ZipFile:
    """One open zip per process: opening reads all names, and a forked worker may not share a handle."""
    return zipfile.ZipFile(archive)


@lru_cache(maxsize=64)
def _indexed(archive: str, modified: int) -> Mapping[str, Entry]:
    """The entries by clean name."""
    if archive.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as opened:
            found = [(info.filename, info) for info in opened.infolist() if not info.is_dir()]
    else:
        with tarfile.open(archive) as opened:
            found = [(info.name, info) for info in opened if not info.isdir()]
    return {str(PurePosixPath(name)): entry for name, entry in found if _stays_inside(name)}


@lru_cache(maxsize=16)
def _folders(archive: str, modified: int) -> Mapping[str, list[str]]:
    """What lies in each folder."""
    found: dict[str, list[str]] = {}
    for name in _index(archive):
        for parent in PurePosixPath(name).parents:
            found.setdefault(str(parent), [])
        found[str(PurePosixPath(name).parent)].append(name)
    return found


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return not path.is_absolute() and ".." not in path.parts


def _is_file(entry: Entry) -> bool:
    if isinstance(entry, tarfile.TarInfo):
        return entry.isreg()
    kind = stat.S_IFMT(entry.external_attr >> 16)
    return kind in (0, stat.S_IFREG)
