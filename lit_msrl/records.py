"""Records of judgements: what a judge said of an example, in the terms of the example's source.

A file of records holds one JSON object per line, and anyone can write one::

    {"id": "wildvision-7#1f2e", "order": "AB", "sample": 0, "preferred": 1, "confidence": 0.9, "text": "..."}

``order`` is ``BA`` when candidate 2 was shown as A; ``preferred`` is ``1``, ``2``, ``"tie"`` or ``null`` (no
verdict could be read), in the *source's own* numbering, whatever the order. ``sample``, ``confidence``,
``text`` and ``tokens`` (what the judgement cost) may be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from lit_msrl.outputs import parse_object
from lit_msrl.types import PreferenceExample, Winner

Order = Literal["AB", "BA"]


@dataclass(frozen=True)
class JudgementRecord:
    """One judgement of one item; candidates keep their source's numbers, whatever the order shown.

    Attributes:
        id: The example's id.
        task_type: One of ``TASK_TYPES``.
        order: ``BA`` when candidate 2 was shown as A.
        sample: Which of several completions of the same prompt this is; 0 when greedy.
        winner: The better candidate, or ``tie``.
        preferred: The candidate the judge chose, or ``tie``; ``None`` when no verdict could be read.
        well_formed: Whether the completion keeps to the grammar; of a record without it, whether it was read.
        confidence: The judge's, between 0 and 1, where it has one.
        text: What the judge wrote.
        tokens: How many tokens the judgement took, where that is known.
    """

    id: str
    task_type: str
    order: Order
    sample: int
    winner: Winner
    preferred: Winner | None
    well_formed: bool
    confidence: float | None
    text: str
    tokens: int | None = None

    @property
    def correct(self) -> bool:
        """Whether the judge chose the better candidate; an unread verdict did not."""
        return self.preferred == self.winner

    @property
    def decided(self) -> bool:
        """Whether the judge chose a candidate, rather than a tie or nothing."""
        return self.preferred in (1, 2)

    @property
    def chose_first(self) -> bool:
        """Whether the judge chose the candidate that was shown as A."""
        return self.preferred == (1 if self.order == "AB" else 2)

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> JudgementRecord:
        """The record that ``to_json`` wrote."""
        return cls(**fields)


def to_fields(record: JudgementRecord) -> dict[str, Any]:
    """What a file holds of the record: all but what the example says already."""
    names = ("id", "order", "sample", "preferred", "confidence", "text", "tokens", "well_formed")
    fields = record.to_json()
    return {name: fields[name] for name in names}


def read_records(path: str | Path, examples: Iterable[PreferenceExample]) -> list[JudgementRecord]:
    """The records of a file, joined with the examples they are about.

    An example's id may be given without its ``#`` part where that is unambiguous.

    Raises:
        ValueError: A line is no record, is about no example, or repeats an earlier one; the message names the
            file, the row and the field.
    """
    known = _by_id(examples)
    records: dict[tuple[str, str, int], JudgementRecord] = {}
    for row, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path} row {row}"
        record = _record(line, known, where)
        key = (record.id, record.order, record.sample)
        if key in records:
            raise ValueError(
                f"{where}: fields 'id', 'order' and 'sample' repeat an earlier row "
                f"({record.id!r}, {record.order}, {record.sample})"
            )
        records[key] = record
    if not records:
        raise ValueError(f"{path}: holds no records")
    return list(records.values())


def _lines(path: str | Path) -> list[str]:
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file of records")
    try:
        return Path(path).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error})") from error


def _by_id(examples: Iterable[PreferenceExample]) -> dict[str, PreferenceExample]:
    known: dict[str, PreferenceExample] = {}
    short: dict[str, list[PreferenceExample]] = {}
    for example in examples:
        known[example.id] = example
        short.setdefault(example.id.rsplit("#", 1)[0], []).append(example)
    return {name: few[0] for name, few in short.items() if len(few) == 1} | known


def _record(line: str, known: Mapping[str, PreferenceExample], where: str) -> JudgementRecord:
    fields = _fields(line, where)
    example = known.get(str(fields["id"]))
    if example is None:
        some = next(iter(known), "none")
        _refuse(where, "id", fields["id"], f"the data has no such example; one of its ids is {some!r}")
    fields = {"sample": 0, "confidence": None, "text": "", "tokens": None} | fields
    for name, (fits, expected) in _CHECKS.items():
        if not fits(fields[name]):
            _refuse(where, name, fields[name], f"expected {expected}")
    return JudgementRecord(
        id=example.id,
        task_type=example.task_type,
        order=fields["order"],
        sample=fields["sample"],
        winner=example.winner,
        preferred=fields["preferred"],
        well_formed=bool(fields.get("well_formed", fields["preferred"] is not None)),
        confidence=fields["confidence"],
        text=fields["text"],
        tokens=fields["tokens"],
    )


def _fields(line: str, where: str) -> dict[str, Any]:
    fields = parse_object(line, where)
    for name in ("id", "order", "preferred"):
        if name not in fields:
            raise ValueError(f"{where}: field {name!r} is missing")
    return fields


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "order": (lambda v: v in ("AB", "BA"), "'AB' or 'BA'"),
    "sample": (_is_count, "0, 1, 2, ..."),
    "preferred": (lambda v: v is None or v == "tie" or (_is_count(v) and v in (1, 2)), "1, 2, 'tie' or null"),
    "confidence": (
        lambda v: v is None or (isinstance(v, int | float) and 0 <= v <= 1),
        "a number from 0 to 1, or null",
    ),
    "text": (lambda v: isinstance(v, str), "text"),
    "tokens": (lambda v: v is None or _is_count(v), "a count, or null"),
}


def _refuse(where: str, name: str, value: object, reason: str) -> NoReturn:
    raise ValueError(f"{where}: field {name!r} is {value!r}; {reason}")
