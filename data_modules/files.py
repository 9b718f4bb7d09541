"""Rows of local files, one at a time, as they are: no schema is guessed and errors name the row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

import pyarrow
import pyarrow.parquet

from data_modules import archives

Row = Mapping[str, Any]
TABLES = (".json", ".jsonl", ".csv", ".parquet")
_DAMAGED = (UnicodeDecodeError, csv.Error, gzip.BadGzipFile, EOFError, zlib.error)


def is_table(path: str) -> bool:
    """Whether the name is that of a file ``read_rows`` can read.

    Example:
        >>> is_table("a/pairs.jsonl.gz"), is_table("pairs.zip"), is_table("nvidia/HelpSteer3")
        (True, True, False)
    """
    return _suffix(path) in TABLES or path.lower().endswith(archives.SUFFIXES)


def check_table(path: str) -> None:
    """Refuse what is not there, or an archive that does not hold exactly one table.

    Raises:
        ValueError: It cannot be opened.
    """
    inside = archives.split(path)
    if not Path(path if inside is None else inside[0]).is_file():
        raise ValueError(f"{path}: no such file")
    _locate(path)


def read_rows(path: str) -> Iterator[tuple[int, Row]]:
    """The rows of a JSON, JSONL, CSV or Parquet file, numbered from 1 (JSONL: by line).

    The file may be gzipped, or lie in a zip or tar archive (``pairs.zip/train.jsonl``; an archive that holds
    one table needs no more than its own name).

    Raises:
        ValueError: The file, or a row of it, cannot be read.
    """
    path = _locate(path)
    suffix = _suffix(path)
    with _open(path) as file:
        if suffix == ".parquet":
            yield from _read_parquet(path, file)
            return
        unpacked = gzip.GzipFile(fileobj=file) if path.lower().endswith(".gz") else file
        text = io.TextIOWrapper(unpacked, encoding="utf-8", newline="")  # type: ignore[type-var]
        readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv}
        try:
            yield from readers[suffix](path, text)
        except _DAMAGED as error:
            raise ValueError(f"{path}: not a readable {suffix} file ({error})") from error


def _suffix(path: str) -> str:
    return Path(path.lower().removesuffix(".gz")).suffix


def _locate(path: str) -> str:
    """The path of the table itself: an archive's only one, if just the archive is named."""
    inside = archives.split(path)
    if inside is None or inside[1]:
        return path
    tables = [name for name in archives.names(path) if _suffix(name) in TABLES]
    if len(tables) != 1:
        named = f"several tables ({', '.join(tables[:5])}); name one" if tables else "no table"
        raise ValueError(f"{path}: holds {named}" + (f", as in {path}/{tables[0]}" if tables else ""))
    return f"{path}/{tables[0]}"


@contextmanager
def _open(path: str) -> Iterator[IO[bytes]]:
    inside = archives.split(path)
    if inside is not None:
        with archives.open_member(*inside) as file:
            yield file
        return
    with open(path, "rb") as file:
        yield file


def _read_parquet(path: str, file: IO[bytes]) -> Iterator[tuple[int, Row]]:
    try:
        table = pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable .parquet file ({error})") from error
    yield from enumerate((row for batch in table.iter_batches(64) for row in batch.to_pylist()), start=1)


def _read_jsonl(path: str, file: TextIO) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield number, _parse(line, f"{path} row {number}")


def _read_json(path: str, file: TextIO) -> Iterator[tuple[int, Row]]:
    """A list of rows; some publish JSON lines under this name, which is told from the first two lines."""
    first, second = file.readline(), file.readline()
    if first.rstrip().endswith("}") and second.lstrip().startswith("{"):
        yield from _read_jsonl(path, io.StringIO(first + second + file.read()))
        return
    rows = _parse(first + second + file.read(), path)
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
