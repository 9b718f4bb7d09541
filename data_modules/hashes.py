"""Content hashes that are not computed twice: remembered by where a medium lies."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from pathlib import Path

from data_modules import archives
from data_modules.content import MediaError, content_hash, frame_files
from data_modules.urls import Urls, is_url
from lit_msrl.types import Media

_LINE = 81  # two hashes of 40 hexadecimal digits and a space


class KnownHashes:
    """The content hash of a medium (see ``content_hash``), read from its bytes once.

    What is in memory is hashed each time, which takes less than to have read it. Files are remembered by
    their path, size and time of change, files in an archive by those of the archive, addresses by themselves:
    a file that is written anew is read anew, an address is trusted to show the same for ever.

    Args:
        file: Where hashes are kept for the next epoch and for other processes, which may add to it at the
            same time; a file that cannot be written to does no harm.
        urls: Addresses that may be read.
    """

    def __init__(self, file: str, urls: Urls | None = None) -> None:
        self.file, self.urls = Path(file), urls

    def __call__(self, media: Media) -> str:
        """The content hash.

        Raises:
            MediaError: The medium cannot be read.
        """
        place = _place(media)
        if place is None:
            return content_hash(media, urls=self.urls)
        found = self._known.get(place)
        if found is None:
            found = self._known[place] = content_hash(media, urls=self.urls)
            self._keep(f"{place} {found}\n")
        return found

    @cached_property
    def _known(self) -> dict[str, str]:
        text = self.file.read_text(encoding="ascii", errors="replace") if self.file.is_file() else ""
        return dict(line.split(" ") for line in text.splitlines() if len(line) == _LINE and line[40] == " ")

    def _keep(self, line: str) -> None:
        try:
            with self.file.open("a", encoding="ascii") as file:
                file.write(line)  # so short a line is written in one piece
        except OSError:
            pass


def _place(media: Media) -> str | None:
    """A name for where a medium lies and when it was changed; ``None`` if it is in memory."""
    sources = frame_files(media) or (media.source,)
    stamps = [_stamp(source) for source in sources if isinstance(source, str)]
    if not stamps or len(stamps) < len(sources):
        return None
    return hashlib.blake2b("\n".join(stamps).encode(), digest_size=20).hexdigest()


def _stamp(source: str) -> str:
    if is_url(source):
        return source
    inside = archives.split(source)
    file = inside[0] if inside is not None else source
    try:
        found = os.stat(file)
    except OSError as error:
        raise MediaError(f"{source}: no such file") from error
    return f"{os.path.abspath(source)} {found.st_size} {found.st_mtime_ns}"
