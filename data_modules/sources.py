"""Where examples come from: a source streams them, one file or hub dataset at a time.

``Rows`` reads JSON, JSONL, CSV and Parquet files and hub datasets through an adapter, a function of
``data_modules.datasets``. Other sources (the procedural world) subclass ``Source``.
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
from typing import Any

import datasets

from data_modules.files import is_table, read_rows
from lit_msrl.types import Media, PreferenceExample

_log = logging.getLogger(__name__)
Adapter = Callable[..., PreferenceExample | list[PreferenceExample] | None]


class Source(ABC):
    """A stream of examples that comes in the same order every time it is opened."""

    @abstractmethod
    def dataset(self) -> datasets.IterableDataset:
        """A fresh stream of ``{"example": PreferenceExample}``, media not decoded."""

    @abstractmethod
    def describe(self) -> str:
        """One line that says what is streamed; it identifies the source in a checkpoint."""

    def check(self) -> None:  # noqa: B027 - most sources need nothing
        """Raise ``ValueError`` at once if it could never be opened."""


class Rows(Source):
    """The rows of a file or a hub dataset, read by an adapter.

    Args:
        path: A ``.json``, ``.jsonl``, ``.csv`` (also ``.gz``) or ``.parquet`` file, a folder in the
            hub's layout, or the id of a hub dataset, which is streamed.
        adapter: A module of ``data_modules.datasets`` (``judgebench``), or the dotted name of a function
            that turns a row into an example, a list of examples, or ``None`` (leave it out).
        options: Keyword arguments for the adapter.
        media_root: Where relative media paths start; by default the folder of the file.
        subset: The hub dataset's configuration.
        split: The hub dataset's split.
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
        media_root: str | None = None,
        subset: str | None = None,
        split: str = "train",
        limit: int | None = None,
        keep_ties: bool = False,
    ) -> None:
        self.path, self.adapter, self.options = path, adapter, options or {}
        self.subset, self.split, self.limit, self.keep_ties = subset, split, limit, keep_ties
        self.is_file = is_table(path)
        self.media_root = Path(path).parent if self.is_file and media_root is None else media_root
        self.tally: Counter[str] = Counter()

    def check(self) -> None:
        """The adapter exists, and the file does.

        Raises:
            ValueError: One of them does not.
        """
        _find_adapter(self.adapter)
        if self.is_file and not Path(self.path).is_file():
            raise ValueError(f"{self.path}: no such file")

    def describe(self) -> str:
        """The path, the adapter and what is read of it."""
        part = "" if self.is_file else f", {self.subset or 'default'}/{self.split}"
        options = "".join(f", {key}={value}" for key, value in sorted(self.options.items()))
        limit = "" if self.limit is None else f", {self.limit} rows"
        return f"{self.path} ({self.adapter}{options}{part}{limit}{', ties kept' if self.keep_ties else ''})"

    def dataset(self) -> datasets.IterableDataset:
        """A fresh stream of ``{"example": PreferenceExample}``, media not decoded."""
        if self.is_file:
            return datasets.IterableDataset.from_generator(self._from_file)  # type: ignore[return-value]
        rows = datasets.load_dataset(self.path, self.subset, split=self.split, streaming=True).decode(False)
        rows = rows if self.limit is None else rows.take(self.limit)
        columns = rows.column_names or list(next(iter(rows)))
        return rows.map(self._from_hub, batched=True, batch_size=1, with_indices=True, remove_columns=columns)

    def _from_file(self) -> Iterator[dict[str, PreferenceExample]]:
        self.tally = Counter()
        for number, row in islice(read_rows(self.path), self.limit):
            yield from ({"example": example} for example in self._examples(number, row))
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
        return {"example": self._examples(indices[0] + 1, row)}

    def _examples(self, number: int, row: Mapping[str, Any]) -> list[PreferenceExample]:
        if not isinstance(row, Mapping):
            raise ValueError(f"{self.path} row {number}: is {type(row).__name__}, not an object with fields")
        row = row if "id" in row else {**row, "id": str(number)}
        try:
            found = _find_adapter(self.adapter)(row, **self.options)
        except KeyError as error:
            raise ValueError(
                f"{self.path} row {number}: field {error} is missing ({self.adapter})"
            ) from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path} row {number}: {error} ({self.adapter})") from error
        examples = [found] if isinstance(found, PreferenceExample) else found or []
        kept = [example for example in examples if self.keep_ties or example.winner != "tie"]
        self.tally.update(rows=1, examples=len(kept), ties=len(examples) - len(kept))
        return [replace(example, media=tuple(map(self._locate, example.media))) for example in kept]

    def _locate(self, media: Media) -> Media:
        if not isinstance(media.source, str) or self.media_root is None:
            return media
        return replace(media, source=str(Path(self.media_root) / media.source))


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
