"""Several sources as one: how much of each, in which order, and how it goes on."""

from __future__ import annotations

import logging

import pytest

from data_modules.base import PreferenceDataModule
from data_modules.mixture import Mixture
from data_modules.sources import Rows, Source
from tests.data_modules.made import Numbers
from tests.experiments.made import write_rows

ROW = {"prompt": "2+2?", "candidate_1": "4", "candidate_2": "5", "winner": "1"}


def names(source) -> list[str]:
    return [row["example"].id for row in source.dataset()]


def test_every_stretch_holds_the_mixture():
    found = names(Mixture([Numbers(90, "a"), Numbers(50, "b")], [6, 3]))
    for start in range(0, 9, 3):
        assert sorted(name[0] for name in found[start : start + 3]) == ["0", "0", "1"]
    assert len(set(found)) == 9


def test_one_after_the_other():
    found = names(Mixture([Numbers(9, "a"), Numbers(9, "b")], [2, 3], interleave=False))
    assert found == ["0:a0", "0:a1", "1:b0", "1:b1", "1:b2"]


def test_equal_ids_of_two_sources_are_told_apart():
    found = names(Mixture([Numbers(2), Numbers(2)], [2, 2]))
    assert sorted(found) == ["0:n0", "0:n1", "1:n0", "1:n1"]


def test_a_source_with_fewer_gives_what_it_has_and_that_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        found = names(Mixture([Numbers(2, "a"), Numbers(9, "b")], [4, 4]))
    assert [name[0] for name in found].count("0") == 2
    assert len(found) == 6
    assert "2 numbers a: has 2 examples, not the 4 asked for" in caplog.text


@pytest.mark.parametrize("interleave", [True, False])
@pytest.mark.parametrize("stop", range(1, 9))
def test_a_stream_goes_on_where_it_was(interleave, stop):
    mixture = Mixture([Numbers(3, "a"), Numbers(9, "b"), Numbers(9, "c")], [4, 2, 3], interleave=interleave)
    whole = names(mixture)
    stream = mixture.dataset()
    rows = iter(stream)
    for _ in range(stop):
        next(rows, None)
    again = mixture.dataset()
    again.load_state_dict(stream.state_dict())
    assert [row["example"].id for row in again] == whole[stop:]
    batches = [[example.id for example in batch["example"]] for batch in mixture.dataset().iter(batch_size=3)]
    assert sum(batches, []) == whole
    assert {len(batch) for batch in batches[:-1]} == {3}


def test_a_data_module_shuffles_and_resumes_a_mixture():
    def module() -> PreferenceDataModule:
        return PreferenceDataModule(
            Mixture([Numbers(20, "a"), Numbers(20, "b")], [8, 8]), shuffle_buffer=6, batch_size=4
        )

    batches = [[example.id for example in batch] for batch in module().train_dataloader()]
    assert sorted(sum(batches, [])) == sorted(names(module().train))
    loader = module().train_dataloader()
    for _, batch in zip(range(2), loader, strict=False):
        state = batch.state
    again = module().train_dataloader()
    again.load_state_dict({"position": state})
    assert [[example.id for example in batch] for batch in again] == batches[2:]


def test_rows_are_counted_over_all_sources_and_refused_rows_told(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", ROW, {**ROW, "winner": "tie"}, {**ROW, "winner": 3}, ROW)
    mixture = Mixture([Rows(path), Numbers(1)], [9, 9])
    refused: list[str] = []
    assert sorted(example.id for example in mixture.examples(refused.append)) == ["0:1", "0:4", "1:n0"]
    assert mixture.counted() == {"rows": 3, "examples": 2, "ties": 1}
    (line,) = refused
    assert "row 3: field 'winner' is 3" in line
    with pytest.raises(ValueError, match="row 3: field 'winner' is 3"):
        list(mixture.examples())


def test_what_cannot_be_a_mixture_is_refused(tmp_path):
    refused: list[tuple[list[Source], list[int]]] = [([], []), ([Numbers(1)], [1, 2]), ([Numbers(1)], [0])]
    for sources, counts in refused:
        with pytest.raises(ValueError, match="each needs one, of at least 1"):
            Mixture(sources, counts)
    with pytest.raises(ValueError, match="no such file"):
        Mixture([Rows(str(tmp_path / "absent.jsonl"))], [1]).check()
    one, other = Mixture([Numbers(1)], [1]), Mixture([Numbers(1)], [2])
    assert one.describe() != other.describe()
