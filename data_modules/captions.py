"""Captions that ``experiments/caption.py`` wrote, found by the content of what they describe."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from data_modules.content import MediaError
from data_modules.files import read_rows
from data_modules.hashes import KnownHashes
from data_modules.urls import Urls
from lit_msrl.types import Media, PreferenceExample


class Captions:
    """Fills the captions of examples that have media and no captions.

    The key is ``content_hash``, a hash of the encoded bytes: it does not matter where they lie or what they
    are called, and no pixel is decoded for it. How often bytes are read: see ``KnownHashes``.

    Args:
        files: JSONL or Parquet files with the columns ``media`` (the hash) and ``caption``; rows without a
            caption are passed over.
        urls: Addresses that may be read.

    Raises:
        ValueError: A file is not there.
    """

    def __init__(self, files: str | list[str], urls: Urls | None = None) -> None:
        self.files = [files] if isinstance(files, str) else list(files)
        for file in self.files:
            if not Path(file).is_file():
                raise ValueError(f"{file}: no such file; experiments/caption.py writes one")
        self.hashes = KnownHashes(hashes_beside(self.files[0]), urls)

    def describe(self) -> str:
        """The files and a fingerprint of what they hold."""
        fingerprint = zlib.crc32("\n".join(f"{k} {v}" for k, v in sorted(self._captions.items())).encode())
        return f"captions of {', '.join(self.files)} ({fingerprint:08x})"

    def join(self, example: PreferenceExample) -> PreferenceExample | None:
        """The example with captions; ``None`` if there is none for one of its media.

        Raises:
            MediaError: A medium cannot be read; the message names file, row and field.
            ValueError: A row of the files does not fit.
        """
        if example.captions or not example.media:
            return example
        found = tuple(self._captions.get(self._hash(media, example)) for media in example.media)
        captions = tuple(caption for caption in found if caption is not None)
        return replace(example, captions=captions) if len(captions) == len(found) else None

    def _hash(self, media: Media, example: PreferenceExample) -> str:
        try:
            return self.hashes(media)
        except MediaError as error:
            where = media.origin or f"example {example.id!r} of {example.source or 'unnamed source'}"
            raise MediaError(f"{where}: {error}") from error

    @cached_property
    def _captions(self) -> dict[str, str]:
        found: dict[str, str] = {}
        places: dict[str, str] = {}
        for file in self.files:
            for number, row in read_rows(file):
                where = f"{file} row {number}"
                media, caption = _read(row, where)
                if media is None or caption is None:
                    continue
                if found.setdefault(media, caption) != caption:
                    raise ValueError(
                        f"{where}: another caption of the same media ({media}) than in {places[media]};"
                        " remove one of the rows"
                    )
                places.setdefault(media, where)
        if not found:
            raise ValueError(f"{', '.join(self.files)}: holds no captions")
        return found


def hashes_beside(file: str) -> str:
    """Where the hashes of media are kept that a file of captions is about."""
    return f"{file}.hashes"


def _read(row: Mapping[str, Any], where: str) -> tuple[str | None, str | None]:
    if not isinstance(row, Mapping) or not {"media", "caption"} <= row.keys():
        raise ValueError(f"{where}: needs 'media', a content hash, and 'caption'")
    media, caption = row["media"], row["caption"]
    if not isinstance(media, str | None) or not isinstance(caption, str | None):
        raise ValueError(f"{where}: 'media' and 'caption' must be text or null")
    return media, caption or None
