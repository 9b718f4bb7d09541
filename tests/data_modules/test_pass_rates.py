"""Filtering a source by a file of pass rates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from data_modules.base import PreferenceDataModule
from data_modules.pass_rates import PassRateFilter
from data_modules.text import TextPreferenceDataModule
from tests.data_modules.made import Numbers

RATES = [0.0, 0.125, 0.5, 0.875, 1.0]


def written(path: Path, count: int = 20, source: str = "n") -> str:
    """Rates of ``n0, n1, ...``, from never to always over and over."""
    rows = [{"source": source, "id": f"n{i}", "pass_rate": RATES[i % 5]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ids(batches) -> list[list[str]]:
    return [[example.id for example in batch] for batch in batches]


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [({}, [1, 2, 3]), ({"min": 0.125, "max": 0.5}, [1, 2]), ({"min": 0.5, "max": 1.0}, [2, 3, 4])],
)
def test_what_lies_between_the_bounds_is_kept(tmp_path, bounds: dict, kept: list[int]) -> None:
    source = PassRateFilter(Numbers(20), written(tmp_path / "rates.jsonl"), **bounds)
    source.check()
    found = [row["example"].id for row in source.dataset()]
    assert found == [f"n{i}" for i in range(20) if i % 5 in kept]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_filtered_stream_resumes_exactly(tmp_path, workers: int) -> None:
    path = written(tmp_path / "rates.jsonl", 60)

    def loader():
        source = PassRateFilter(Numbers(60), path)
        return TextPreferenceDataModule(
            source, batch_size=4, shuffle_buffer=5, num_workers=workers
        ).train_dataloader()

    whole = list(loader())
    again = loader()
    again.load_state_dict({"position": whole[3].state})
    assert ids(again) == ids(whole[4:])
    assert len(whole) == 9


def test_the_same_id_in_another_source_is_another_example(tmp_path) -> None:
    path = written(tmp_path / "rates.jsonl", source="other")
    with pytest.raises(
        ValueError, match="no pass rate of example 'n0' of 'n'; run experiments/pass_rates.py"
    ):
        next(iter(PassRateFilter(Numbers(3), path).dataset()))


def test_a_checkpoint_tells_other_rates_apart(tmp_path) -> None:
    path = written(tmp_path / "rates.jsonl")
    first = PassRateFilter(Numbers(20), path).describe()
    assert first == PassRateFilter(Numbers(20), path).describe()
    written(tmp_path / "rates.jsonl", 19)
    others = [PassRateFilter(Numbers(20), path), PassRateFilter(Numbers(20), path, max=0.5), Numbers(20)]
    assert len({first, *(other.describe() for other in others)}) == 4


@pytest.mark.parametrize(
    ("content", "bounds", "said"),
    [
        (None, {}, "no such file; experiments/pass_rates.py writes one"),
        ({"source": "n", "id": "n0"}, {}, "row 1: needs 'source', 'id' and a 'pass_rate'"),
        ({"source": "n", "id": "n0", "pass_rate": 8.0}, {}, "row 1: needs"),
        ({"source": "n", "pass_rate": 0.5}, {}, "row 1: needs"),
        (
            {"source": "n", "id": "n0", "pass_rate": 1.0},
            {},
            "none of 1 pass rates lies between 0.01 and 0.99",
        ),
        ({"source": "n", "id": "n0", "pass_rate": 0.5}, {"min": 0.9, "max": 0.1}, "use 0 <= min <= max <= 1"),
    ],
)
def test_what_cannot_be_is_said_before_training(tmp_path, content, bounds, said: str) -> None:
    path = tmp_path / "rates.jsonl"
    if content is not None:
        path.write_text(json.dumps(content) + "\n")
    with pytest.raises(ValueError, match=said):
        PreferenceDataModule(PassRateFilter(Numbers(3), str(path), **bounds))


def test_it_is_configured_around_another_source(tmp_path) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(PreferenceDataModule, "data")
    arguments = [
        *("--data.train=PassRateFilter", f"--data.train.rates={written(tmp_path / 'rates.jsonl')}"),
        *("--data.train.source=World", "--data.train.source.size=5", "--data.train.min=0.2"),
    ]
    train = parser.instantiate(parser.parse_args(arguments)).data.train
    assert (train.source.size, train.min, train.max) == (5, 0.2, 0.99)
