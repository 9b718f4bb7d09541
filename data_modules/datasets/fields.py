"""Reading the fields of a row, with errors that name the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from lit_msrl.types import Media

T = TypeVar("T")
Row = Mapping[str, Any]


def has(row: Row, name: str) -> bool:
    """Whether the field is there and not empty (CSV writes a missing value as an empty string)."""
    return row.get(name) not in (None, "")


def text(row: Row, name: str) -> str:
    """A field that must hold text.

    Raises:
        ValueError: It is missing, empty or something else.
    """
    if not has(row, name):
        raise ValueError(f"field {name!r} is missing or empty")
    if not isinstance(row[name], str):
        raise ValueError(f"field {name!r} is {type(row[name]).__name__}, not text")
    return row[name]


def choice(row: Row, name: str, meanings: Mapping[Any, T]) -> T:
    """A field that must hold one of a few values, translated.

    Raises:
        ValueError: It is missing or holds another value.
    """
    if not has(row, name):
        raise ValueError(f"field {name!r} (the label) is missing or empty")
    value = row[name].strip() if isinstance(row[name], str) else row[name]
    if not isinstance(value, str | int | float) or value not in meanings:
        raise ValueError(f"field {name!r} is {value!r}; expected one of {', '.join(map(repr, meanings))}")
    return meanings[value]


def media(row: Row, name: str, kind: Literal["image", "video"]) -> Media:
    """A field that must hold a picture or clip: a path, bytes, or the hub's ``{"bytes": ..., "path": ...}``.

    Raises:
        ValueError: It is missing or something else.
    """
    value = row.get(name)
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, str | bytes) or not value:
        raise ValueError(f"field {name!r} holds no {kind}: a path, bytes or {{'bytes', 'path'}} is expected")
    return Media(kind, value)


def identity(row: Row, name: str = "id") -> str:
    """The row's id, as text.

    Raises:
        ValueError: It is missing.
    """
    if not has(row, name):
        raise ValueError(f"field {name!r} is missing or empty")
    return str(row[name])
