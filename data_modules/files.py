"""Rows of local files, one at a time, as they are: no schema is guessed and errors name the row."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import pyarrow
import pyarrow.parquet

Row = Mapping[str, Any]


def is_table(path: str) -> bool:
    """Whether the name is that of a file ``read_rows`` can read.

    Example:
        >>> is_table("a/pairs.jsonl.gz"), is_table("nvidia/HelpSteer3")
        (True, False)
    """
    return _suffix(path) in (".json", ".jsonl", ".csv", ".parquet")


def _suffix(path: str) -> str:
    return Path(path.removesuffix(".gz")).suffix.lower()


def read_rows(path: str) -> Iterator[tuple[int, Row]]:
    """The rows of a JSON, JSONL, CSV or Parquet file, numbered from 1 (JSONL: by line).

    Raises:
        ValueError: The file, or a row of it, cannot be read.
    """
    suffix = _suffix(path)
    if suffix == ".parquet":
        yield from _read_parquet(path)
        return
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv}
        try:
            yield from readers[suffix](path, file)  # type: ignore[arg-type]
        except (UnicodeDecodeError, csv.Error, gzip.BadGzipFile, EOFError) as error:
            raise ValueError(f"{path}: not a readable {suffix} file ({error})") from error


def _read_parquet(path: str) -> Iterator[tuple[int, Row]]:
    with ExitStack() as stack:
        try:
            table = stack.enter_context(pyarrow.parquet.ParquetFile(path))
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}: not a readable .parquet file ({error})") from error
        yield from enumerate(
            (row for batch in table.iter_batches(1024) for row in batch.to_pylist()), start=1
        )


def _read_jsonl(path: str, file: TextIO) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield number, _parse(line, f"{path} row {number}")


def _read_json(path: str, file: TextIO) -> Iterator[tuple[int, Row]]:
    rows = _parse(file.read(), path)
    if not isinstance(rows, list):
        raise ValueError(f"{path}: must hold a list of rows, not {type(rows).__name__}")
    yield from enumerate(rows, start=1)


def _read_csv(path: str, file: TextIO) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(file, strict=True)
    for number, row in enumerate(reader, start=1):
        if None in row or None in row.values():
            raise ValueError(
                f"{path} row {number}: has not the {len(reader.fieldnames or ())} columns of the header"
            )
        yield number, row


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: is not JSON ({error})") from error
