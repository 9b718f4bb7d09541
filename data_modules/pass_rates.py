"""Prompts chosen by how often a judge gets them right, as ``experiments/pass_rates.py`` measured it."""

from __future__ import annotations

import json
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from data_modules.files import read_rows
from data_modules.sources import Source, Stream
from lit_msrl.types import PreferenceExample

_log = logging.getLogger(__name__)
Key = tuple[str, str]


class PassRateFilter(Source):
    """The examples of a source whose pass rate lies between two bounds.

    By default an example is left out that the judge never or always gets right: its completions all earn the
    same and teach nothing.

    Args:
        source: What is filtered.
        rates: The file that ``experiments/pass_rates.py`` wrote.
        min: The lowest pass rate that is kept.
        max: The highest pass rate that is kept.

    Raises:
        ValueError: An example of the source has no pass rate in the file.
    """

    def __init__(self, source: Source, rates: str, *, min: float = 0.01, max: float = 0.99) -> None:
        self.source, self.rates, self.min, self.max = source, rates, min, max

    def check(self) -> None:
        """The source can be opened, the bounds are bounds, and there is something between them.

        Raises:
            ValueError: It is not so.
        """
        self.source.check()
        if not 0 <= self.min <= self.max <= 1:
            raise ValueError(f"pass rates from {self.min} to {self.max}: use 0 <= min <= max <= 1")
        kept = sum(self._within(rate) for rate in self._rates.values())
        if not kept:
            raise ValueError(
                f"{self.rates}: none of {len(self._rates)} pass rates lies between {self.min} and {self.max}"
            )
        _log.info("%s: %d of %d pass rates lie between the bounds", self.rates, kept, len(self._rates))

    def describe(self) -> str:
        """The source, the bounds and a fingerprint of the rates."""
        fingerprint = zlib.crc32(json.dumps(sorted(self._rates.items())).encode())
        bounds = f"pass rate {self.min} to {self.max}"
        return f"{self.source.describe()}, {bounds} in {self.rates} ({fingerprint:08x})"

    def counted(self) -> Counter[str]:
        """What the source counts."""
        return self.source.counted()

    def dataset(self) -> Stream:
        """A fresh stream of ``{"example": PreferenceExample}``."""
        return _Kept(self.source.dataset(), self._is_kept)

    @cached_property
    def _rates(self) -> dict[Key, float]:
        return {key(row): row["pass_rate"] for row in read_pass_rates(self.rates)}

    def _within(self, rate: float) -> bool:
        return self.min <= rate <= self.max

    def _is_kept(self, row: Mapping[str, PreferenceExample]) -> bool:
        example = row["example"]
        rate = self._rates.get((example.source, example.id))
        if rate is None:
            raise ValueError(
                f"{self.rates}: no pass rate of example {example.id!r} of {example.source!r}; "
                "run experiments/pass_rates.py on the same data, it goes on where it stopped"
            )
        return self._within(rate)


class _Kept:
    """A stream without the rows that are not kept; its position is the stream's own."""

    def __init__(self, stream: Stream, keep: Callable[[Mapping[str, PreferenceExample]], bool]) -> None:
        self.stream, self.keep = stream, keep
        self.state_dict, self.load_state_dict = stream.state_dict, stream.load_state_dict

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (row for row in self.stream if self.keep(row))

    def iter(self, batch_size: int) -> Iterator[dict[str, list[Any]]]:
        """Several rows at once; fewer where some are left out."""
        for batch in self.stream.iter(batch_size=batch_size):
            yield {"example": [each for each in batch["example"] if self.keep({"example": each})]}


def key(row: Mapping[str, Any]) -> Key:
    """What a pass rate belongs to."""
    return row["source"], row["id"]


def read_pass_rates(path: str) -> list[Mapping[str, Any]]:
    """The rows of a file of pass rates.

    Raises:
        ValueError: There is no such file, or a row of it is not one of pass rates.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; experiments/pass_rates.py writes one")
    found = []
    for number, row in read_rows(path):
        rate = row.get("pass_rate")
        if not isinstance(rate, float) or not 0 <= rate <= 1 or not {"source", "id"} <= row.keys():
            raise ValueError(
                f"{path} row {number}: needs 'source', 'id' and a 'pass_rate' between 0.0 and 1.0"
            )
        found.append(row)
    return found
