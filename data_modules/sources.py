"""Where examples come from: a source streams them, one file or hub dataset at a time.

``Rows`` reads JSON, JSONL, CSV and Parquet files and hub datasets through an adapter, a function of
``data_modules.datasets``. Other sources (the procedural world, a mixture) subclass ``Source``.
"""

from __future__ import annotations

import importlib
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import datasets

from data_modules.content import exists
from data_modules.datasets.fields import HeldOut
from data_modules.files import check_table, is_table, read_rows
from data_modules.urls import is_url
from lit_msrl.types import Media, PreferenceExample

_log = logging.getLogger(__name__)
Adapter = Callable[..., PreferenceExample | list[PreferenceExample] | None]
Refused = Callable[[str], None]


class Stream(Protocol):
    """The part of ``datasets.IterableDataset`` that is used: rows, and a position that can be saved."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One row after another."""
        ...

    def iter(self, batch_size: int) -> Iterator[dict[str, list[Any]]]:
        """Several rows at once."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position after the last row handed out."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to a position."""
        ...


class Source(ABC):
    """A stream of examples that comes in the same order every time it is opened."""

    @abstractmethod
    def dataset(self) -> Stream:
        """A fresh stream of ``{"example": PreferenceExample}``, media not decoded."""

    def examples(self, refused: Refused | None = None) -> Iterator[PreferenceExample]:
        """One example after another, to be looked through.

        Args:
            refused: Is told of each row that does not fit, in place of the error that would end the stream.
        """
        yield from (row["example"] for row in self.dataset())

    @abstractmethod
    def describe(self) -> str:
        """One line that says what is streamed; it identifies the source in a checkpoint."""

    def counted(self) -> Counter[str]:
        """``rows`` read, ``examples`` kept, ``ties`` and ``held_out`` rows left out, if it counts them."""
        return Counter()

    def check(self) -> None:  # noqa: B027 - most sources need nothing
        """Raise ``ValueError`` at once if it could never be opened."""


class Rows(Source):
    """The rows of a file or a hub dataset, read by an adapter.

    Args:
        path: A ``.json``, ``.jsonl``, ``.csv`` (also ``.gz``) or ``.parquet`` file, one in an archive
            (``pairs.zip/train.jsonl``), a folder in the hub's layout, or the id of a hub dataset, which is
            streamed.
        adapter: A module of ``data_modules.datasets`` (``judgebench``), or the dotted name of a function
            that turns a row into an example, a list of examples, or ``None`` (leave it out).
        options: Keyword arguments for the adapter.
        media_root: Where relative media paths start, a folder or a zip or tar archive; of several, the first
            that has the file. By default the folder of the file.
        subset: The hub dataset's configuration.
        split: The hub dataset's split.
        skip: Leave out so many rows at the start, such as those that are validated on.
        limit: Read at most this many rows.
        keep_ties: Keep ties; training cannot use them, so by default they are left out and counted.

    Raises:
        ValueError: A row does not fit; the message names the file, the row (counted from 1) and the field.
    """

    def __init__(
        self,
        path: str,
        adapter: str = "generic",
        *,
        options: dict[str, Any] | None = None,
        media_root: str | list[str] | None = None,
        subset: str | None = None,
        split: str = "train",
        skip: int = 0,
        limit: int | None = None,
        keep_ties: bool = False,
    ) -> None:
        self.path, self.adapter, self.options = path, adapter, options or {}
        self.subset, self.split, self.keep_ties = subset, split, keep_ties
        self.skip, self.limit = skip, limit
        self.is_file = is_table(path)
        self.media_roots = [media_root] if isinstance(media_root, str) else media_root or []
        if self.is_file and not self.media_roots:
            self.media_roots = [str(Path(path).parent)]
        self.tally: Counter[str] = Counter()

    def check(self) -> None:
        """The adapter exists, and the file does.

        Raises:
            ValueError: One of them does not.
        """
        _find_adapter(self.adapter)
        if self.is_file:
            check_table(self.path)
        for root in self.media_roots:
            if not exists(root):
                raise ValueError(f"{root}: no such folder or archive (media_root of {self.path})")

    def describe(self) -> str:
        """The path, the adapter and what is read of it."""
        part = "" if self.is_file else f", {self.subset or 'default'}/{self.split}"
        options = "".join(f", {key}={value}" for key, value in sorted(self.options.items()))
        limit = "" if self.limit is None else f", {self.limit} rows"
        limit += f", after row {self.skip}" if self.skip else ""
        return f"{self.path} ({self.adapter}{options}{part}{limit}{', ties kept' if self.keep_ties else ''})"

    def dataset(self) -> datasets.IterableDataset:
        """A fresh stream of ``{"example": PreferenceExample}``, media not decoded."""
        if self.is_file:
            return datasets.IterableDataset.from_generator(self._from_file)  # type: ignore[return-value]
        self.tally = Counter()
        rows = self._hub()
        columns = rows.column_names or list(next(iter(rows)))
        return rows.map(self._from_hub, batched=True, batch_size=1, with_indices=True, remove_columns=columns)

    def examples(self, refused: Refused | None = None) -> Iterator[PreferenceExample]:
        """One example after another; ``refused`` is told of rows that do not fit."""
        self.tally = Counter()
        rows = self._numbered() if self.is_file else enumerate(self._hub(), start=self.skip + 1)
        for number, row in rows:
            try:
                found = self._examples(number, row)
            except ValueError as error:
                if refused is None:
                    raise
                refused(str(error))
                continue
            yield from found

    def counted(self) -> Counter[str]:
        """Since it was last opened: rows read, examples kept, ties and held-out rows left out."""
        return self.tally

    def _hub(self) -> datasets.IterableDataset:
        rows = datasets.load_dataset(self.path, self.subset, split=self.split, streaming=True).decode(False)
        rows = rows.skip(self.skip) if self.skip else rows
        return rows if self.limit is None else rows.take(self.limit)

    def _numbered(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        stop = None if self.limit is None else self.skip + self.limit
        return islice(read_rows(self.path), self.skip, stop)

    def _from_file(self) -> Iterator[dict[str, PreferenceExample]]:
        yield from ({"example": example} for example in self.examples())
        if self.tally["ties"]:
            _log.info(
                "%s: %d ties left out, %d examples kept",
                self.path,
                self.tally["ties"],
                self.tally["examples"],
            )

    def _from_hub(
        self, batch: Mapping[str, list[Any]], indices: list[int]
    ) -> dict[str, list[PreferenceExample]]:
        row = {name: values[0] for name, values in batch.items()}
        return {"example": self._examples(self.skip + indices[0] + 1, row)}

    def _examples(self, number: int, row: Mapping[str, Any]) -> list[PreferenceExample]:
        if not isinstance(row, Mapping):
            raise ValueError(f"{self.path} row {number}: is {type(row).__name__}, not an object with fields")
        row = row if "id" in row else {**row, "id": str(number)}
        try:
            found = _find_adapter(self.adapter)(row, **self.options)
        except HeldOut:
            self.tally.update(rows=1, held_out=1)
            return []
        except KeyError as error:
            raise ValueError(
                f"{self.path} row {number}: field {error} is missing ({self.adapter})"
            ) from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path} row {number}: {error} ({self.adapter})") from error
        examples = [found] if isinstance(found, PreferenceExample) else found or []
        kept = [example for example in examples if self.keep_ties or example.winner != "tie"]
        self.tally.update(rows=1, examples=len(kept), ties=len(examples) - len(kept))
        where = f"{self.path} row {number}"
        return [
            replace(example, media=tuple(self._locate(media, where) for media in example.media))
            for example in kept
        ]

    def _locate(self, media: Media, where: str) -> Media:
        source, origin = media.source, f"{where} field {media.origin!r}"
        try:
            if isinstance(source, str):
                source = self._find(source)
            elif isinstance(source, tuple):
                source = tuple(self._find(frame) for frame in source if isinstance(frame, str))
        except ValueError as error:  # of an archive
            raise ValueError(f"{origin}: {error}") from error
        return replace(media, source=source, origin=origin)

    def _find(self, path: str) -> str:
        """The path below the root that has it; where none has, below the first, which the error will name."""
        if is_url(path) or not self.media_roots:
            return path
        places = [str(Path(root) / path) for root in self.media_roots]
        return places[0] if len(places) == 1 else next(filter(exists, places), places[0])


@cache
def _find_adapter(name: str) -> Adapter:
    module, _, function = (
        name.rpartition(".") if "." in name else (f"data_modules.datasets.{name}", "", "to_example")
    )
    try:
        return importlib.import_module(module).__dict__[function]
    except (ModuleNotFoundError, KeyError) as error:
        known = sorted(
            p.stem for p in (Path(__file__).parent / "datasets").glob("[a-z]*.py") if p.stem != "fields"
        )
        raise ValueError(
            f"unknown adapter {name!r}; use {', '.join(known)} or package.module.function"
        ) from error
