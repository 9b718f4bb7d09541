"""Reading the fields of a row, with errors that name the field."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, TypeVar

from lit_msrl.types import Media, Winner

T = TypeVar("T")
Row = Mapping[str, Any]
Pairs = Literal["best-worst", "all"]


class HeldOut(Exception):
    """A row that belongs to a benchmark's test split: it is left out of training, and counted."""


_WORDS = {1: "one", 2: "two"}


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


def number(row: Row, name: str) -> float:
    """A field that must hold a number, perhaps as text.

    Raises:
        ValueError: It is missing or something else.
    """
    if not has(row, name):
        raise ValueError(f"field {name!r} is missing or empty")
    try:
        value = float(row[name])
    except (TypeError, ValueError) as error:
        raise ValueError(f"field {name!r} is {row[name]!r}, not a number") from error
    if value != value:
        raise ValueError(f"field {name!r} is not a number")
    return value


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


def unpack(row: Row, name: str) -> Any:
    """A field that holds JSON as text, as some tables do with lists; what is unpacked already stays.

    Raises:
        ValueError: It is missing, or not JSON.
    """
    if not has(row, name):
        raise ValueError(f"field {name!r} is missing or empty")
    if not isinstance(row[name], str):
        return row[name]
    try:
        return json.loads(row[name])
    except json.JSONDecodeError as error:
        raise ValueError(f"field {name!r} is not JSON ({error})") from error


def rows(value: Any, name: str, least: int = 1) -> list[Row]:
    """A list of objects.

    Raises:
        ValueError: It is something else, or shorter than ``least``.
    """
    if not isinstance(value, list) or len(value) < least or not all(isinstance(v, Mapping) for v in value):
        raise ValueError(
            f"field {name!r} must be a list of objects, with at least {_WORDS.get(least, least)}"
        )
    return value


def media(row: Row, name: str, kind: Literal["image", "video"]) -> Media:
    """A field that must hold a picture or clip.

    A path or URL, bytes, the hub's ``{"bytes": ..., "path": ...}``, or for a clip the list of its frames.

    Raises:
        ValueError: It is missing or something else.
    """
    value = row.get(name)
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if kind == "video" and isinstance(value, list) and value and all(isinstance(v, str) and v for v in value):
        return Media(kind, tuple(value), name)
    if not isinstance(value, str | bytes) or not value:
        raise ValueError(f"field {name!r} holds no {kind}: a path, bytes or {{'bytes', 'path'}} is expected")
    return Media(kind, value, name)


def identity(row: Row, name: str = "id") -> str:
    """The row's id, as text.

    Raises:
        ValueError: It is missing.
    """
    if not has(row, name):
        raise ValueError(f"field {name!r} is missing or empty")
    return str(row[name])


def conversation(
    turns: Any, name: str, *, speaker: str, words: str, speakers: Mapping[str, str], last: str = "User"
) -> str:
    """A conversation as one prompt: the words alone of a single turn, else every turn with its speaker.

    Args:
        turns: The field's value, a list of objects.
        name: The field, for messages.
        speaker: The key of who speaks.
        words: The key of what is said.
        speakers: What the speakers are called here.
        last: Who must have the last word.

    Raises:
        ValueError: It is no such list, a speaker is unknown, or somebody else has the last word.
    """
    turns = rows(turns, name)
    spoken = [(choice(turn, speaker, speakers), text(turn, words)) for turn in turns]
    if spoken[-1][0] != last:
        asked = next(key for key, called in speakers.items() if called == last)
        raise ValueError(f"field {name!r} must end with a {asked} turn, not {turns[-1][speaker]!r}")
    return spoken[0][1] if len(spoken) == 1 else "\n\n".join(f"{who}: {said}" for who, said in spoken)


def better(first: float, second: float) -> Winner:
    """The winner by score.

    Example:
        >>> better(0.7, 0.3), better(1, 2), better(1, 1)
        (1, 2, 'tie')
    """
    return "tie" if first == second else 1 if first > second else 2


def ranked_pairs(scores: Sequence[float], which: Pairs) -> list[tuple[int, int]]:
    """The pairs to be made of a ranking, each in the order of the source, so that no side always wins.

    Args:
        scores: Of the candidates, more is better.
        which: ``best-worst``: one pair, of the first best and the first worst (none if all are equal);
            ``all``: every pair, those of equal score (ties) included.

    Example:
        >>> ranked_pairs([2, 3, 1], "best-worst"), ranked_pairs([1, 1], "best-worst")
        ([(1, 2)], [])
        >>> ranked_pairs([1, 2, 2], "all")
        [(0, 1), (0, 2), (1, 2)]
    """
    if which == "all":
        return list(combinations(range(len(scores)), 2))
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    return [(min(best, worst), max(best, worst))] if best != worst else []
