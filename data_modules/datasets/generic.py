"""Your own preferences: a JSON, JSONL, CSV or Parquet file with these columns.

=============================  =====================================================================
column                         meaning
=============================  =====================================================================
``prompt``                     the query, or the text that was to be drawn or filmed
``winner``                     ``1``, ``2`` or ``tie``
``candidate_1, candidate_2``   the responses; not for generation tasks
``image`` or ``video``         the medium of an understanding task: a path, or bytes
``media_1, media_2``           the two candidates of a generation task
``task_type``                  one of ``TASK_TYPES``; may be left out for text and understanding tasks
``caption``                    a caption of the medium; ``caption_1, caption_2`` for two
``feedback_1, feedback_2,``    an annotator's reasons: on each candidate, the comparison, and
``comparison, preferred``      the candidate preferred (1 or 2); all four or none
``id``                         optional; else the row's number
=============================  =====================================================================

Other names need no code: ``columns`` says which column is meant, ``values`` what no column holds, a constant
or a text made of columns, and ``labels`` what the winner is called::

    adapter: generic
    options:
      columns: {prompt: question, candidate_1: chosen, candidate_2: rejected}
      values: {winner: 1, image: "photos/{photo_id}.jpg"}

Label: ``winner`` is the better candidate. Licence and citation: those of your data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from data_modules.datasets import fields
from data_modules.datasets.fields import Row
from lit_msrl.types import TASK_TYPES, Media, PreferenceExample, Rationale, TaskType, Winner

_NUMBERS: dict[object, Literal[1, 2]] = {1: 1, 2: 2, "1": 1, "2": 2}
_WINNERS: dict[object, Winner] = {**_NUMBERS, "tie": "tie"}
_MEDIA = {"image", "video", "media_1", "media_2", "caption", "caption_1", "caption_2"}
_REASONS = {"feedback_1", "feedback_2", "comparison", "preferred"}
_NAMES = {"id", "task_type", "prompt", "winner", "candidate_1", "candidate_2"} | _MEDIA | _REASONS


def to_example(
    row: Row,
    columns: Mapping[str, str] | None = None,
    values: Mapping[str, Any] | None = None,
    labels: Mapping[str, Winner] | None = None,
) -> PreferenceExample:
    """Read one row.

    Args:
        row: The row.
        columns: Your column for each of the names above that is called otherwise.
        values: What no column holds: a constant, or a text with columns in braces.
        labels: What ``winner`` is called, e.g. ``{"A": 1, "B": 2, "same": "tie"}``.

    Raises:
        ValueError: A field is missing or does not fit the task type, or an option names what is not there.
    """
    winners = _WINNERS if labels is None else labels
    try:
        return _example(_renamed(row, columns or {}, values or {}), winners)
    except ValueError as error:
        read_from = ", ".join(f"{ours} is column {theirs!r}" for ours, theirs in (columns or {}).items())
        raise ValueError(f"{error}; {read_from}" if read_from else str(error)) from error


def _example(row: Row, winners: Mapping[Any, Winner]) -> PreferenceExample:
    task_type = _task_type(row)
    generation = task_type.endswith("generation")
    return PreferenceExample(
        id=fields.identity(row),
        task_type=task_type,
        prompt=fields.text(row, "prompt"),
        winner=fields.choice(row, "winner", winners),
        candidates=None if generation else (fields.text(row, "candidate_1"), fields.text(row, "candidate_2")),
        media=_media(row, task_type),
        captions=tuple(fields.text(row, name) for name in _captions(row, generation)),
        rationale=_rationale(row),
        source="generic",
    )


def _renamed(row: Row, columns: Mapping[str, str], values: Mapping[str, Any]) -> Row:
    """The row under the names above."""
    if not columns and not values:
        return row
    unknown = sorted({*columns, *values} - _NAMES)
    if unknown:
        raise ValueError(f"options name {', '.join(unknown)}; the names are {', '.join(sorted(_NAMES))}")
    for theirs in columns.values():
        if theirs not in row:
            raise ValueError(f"field {theirs!r} is missing; the row has {', '.join(map(str, row))}")
    made = {ours: _filled(value, row) for ours, value in values.items()}
    return {**row, **{ours: row[theirs] for ours, theirs in columns.items()}, **made}


def _filled(value: Any, row: Row) -> Any:
    """A text with the row's columns in place of their names in braces."""
    if not isinstance(value, str):
        return value
    try:
        return value.format_map(row)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"the value {value!r} names field {error}, which the row lacks") from error


def _task_type(row: Row) -> TaskType:
    if fields.has(row, "task_type"):
        return fields.choice(row, "task_type", {name: name for name in TASK_TYPES})
    if any(fields.has(row, name) for name in ("media_1", "media_2", "caption", "caption_1", "caption_2")):
        if fields.has(row, "image") or fields.has(row, "video"):
            return "image understanding" if fields.has(row, "image") else "video understanding"
        raise ValueError("field 'task_type' is missing; rows with media or captions need it")
    if fields.has(row, "image"):
        return "image understanding"
    return "video understanding" if fields.has(row, "video") else "text"


def _media(row: Row, task_type: TaskType) -> tuple[Media, ...]:
    kind: Literal["image", "video"] = "video" if task_type.startswith("video") else "image"
    names = ("media_1", "media_2") if task_type.endswith("generation") else (kind,)
    if task_type == "text" or not any(fields.has(row, name) for name in names):
        return ()
    return tuple(fields.media(row, name, kind) for name in names)


def _captions(row: Row, generation: bool) -> tuple[str, ...]:
    names = ("caption_1", "caption_2") if generation else ("caption",)
    return names if any(fields.has(row, name) for name in names) else ()


def _rationale(row: Row) -> Rationale | None:
    names = ("feedback_1", "feedback_2", "comparison")
    if not any(fields.has(row, name) for name in (*names, "preferred")):
        return None
    first, second, comparison = (fields.text(row, name) for name in names)
    return Rationale((first, second), comparison, fields.choice(row, "preferred", _NUMBERS))
