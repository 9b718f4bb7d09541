"""Files of records, made here or by anyone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_msrl.records import read_records, to_fields
from lit_msrl.types import PreferenceExample

EXAMPLES = [
    PreferenceExample(name, "text", "2+2?", 2, candidates=("5", "4")) for name in ("a#1", "b#1", "b#2", "7")
]
GOOD = {"id": "a#1", "order": "BA", "preferred": 2}


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_the_least_a_record_can_say(tmp_path: Path):
    (found,) = read_records(written(tmp_path / "r.jsonl", GOOD, ""), EXAMPLES)
    assert (found.id, found.order, found.sample, found.winner, found.preferred) == ("a#1", "BA", 0, 2, 2)
    assert found.correct
    assert found.chose_first
    assert (found.confidence, found.text, found.tokens, found.well_formed) == (None, "", None, True)


def test_a_record_survives_its_file(tmp_path: Path):
    full = {**GOOD, "sample": 3, "confidence": 0.5, "text": "a\u2028b\n", "tokens": 7, "preferred": None}
    found = read_records(written(tmp_path / "r.jsonl", full), EXAMPLES)
    again = tmp_path / "again.jsonl"
    again.write_text("".join(f"{json.dumps(to_fields(record))}\n" for record in found), encoding="utf-8")
    assert read_records(again, EXAMPLES) == found
    assert to_fields(found[0]).keys() >= {"id", "order", "sample", "preferred", "confidence", "text"}


def test_an_id_may_leave_out_its_hash_where_that_is_enough(tmp_path: Path):
    rows = [{**GOOD, "id": "a"}, {**GOOD, "id": 7}]
    assert [r.id for r in read_records(written(tmp_path / "r.jsonl", *rows), EXAMPLES)] == ["a#1", "7"]
    with pytest.raises(ValueError, match="field 'id' is 'b'; the data has no such example"):
        read_records(written(tmp_path / "r.jsonl", {**GOOD, "id": "b"}), EXAMPLES)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "row 2: is not JSON"),
        ([1], "row 2: is list, not an object"),
        ({"id": "7", "order": "AB"}, "row 2: field 'preferred' is missing"),
        ({**GOOD, "id": "zz"}, "row 2: field 'id' is 'zz'; the data has no such example; one of its ids is"),
        ({**GOOD, "id": "7", "order": "AC"}, "row 2: field 'order' is 'AC'"),
        ({**GOOD, "id": "7", "preferred": 3}, "row 2: field 'preferred' is 3; expected 1, 2, 'tie' or null"),
        ({**GOOD, "id": "7", "preferred": True}, "row 2: field 'preferred' is True"),
        ({**GOOD, "id": "7", "preferred": "A"}, "row 2: field 'preferred' is 'A'"),
        ({**GOOD, "id": "7", "sample": -1}, "row 2: field 'sample' is -1"),
        ({**GOOD, "id": "7", "confidence": 1.5}, "row 2: field 'confidence' is 1.5"),
        ({**GOOD, "id": "7", "text": 5}, "row 2: field 'text' is 5"),
        ({**GOOD, "id": "7", "tokens": "many"}, "row 2: field 'tokens' is 'many'"),
        (GOOD, "row 2: fields 'id', 'order' and 'sample' repeat an earlier row"),
    ],
)
def test_a_bad_record_names_file_row_and_field(row, message, tmp_path: Path):
    path = written(tmp_path / "r.jsonl", GOOD, row)
    with pytest.raises(ValueError, match=message) as caught:
        read_records(path, EXAMPLES)
    assert str(caught.value).startswith(f"{path} row 2: ")


def test_files_that_hold_nothing(tmp_path: Path):
    with pytest.raises(ValueError, match="no such file of records"):
        read_records(tmp_path / "r.jsonl", EXAMPLES)
    with pytest.raises(ValueError, match="holds no records"):
        read_records(written(tmp_path / "r.jsonl"), EXAMPLES)
    (tmp_path / "r.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_records(tmp_path / "r.jsonl", EXAMPLES)
