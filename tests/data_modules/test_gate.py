"""What cannot be made short enough is left out alike on every rank, in every worker and after a resume."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from data_modules.base import PreferenceDataModule
from data_modules.caption import CaptionPreferenceDataModule
from data_modules.order import ShuffledSource
from data_modules.stream import BatchStream, Gate, ResumableLoader
from tests.data_modules.made import Numbers


def same(example):
    return example


class EvenOnly:
    """Admits even numbers, all up to ``start`` refused; shrinks multiples of four."""

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def admits(self, example) -> bool:
        number = int(example.id[1:])
        return number % 2 == 0 and number >= self.start

    def fit(self, example):
        return replace(example, prompt="shorter") if int(example.id[1:]) % 4 == 0 else example


def loader(count=40, *, block=7, workers=0, rank=0, world_size=1, start=0):
    gate = Gate(EvenOnly(start))
    order = partial(ShuffledSource, Numbers(count), block=block, prepare=partial(gate.admit, same))
    stream = BatchStream(order, batch_size=2, decode=same, gate=gate, rank=rank, world_size=world_size)
    return ResumableLoader(stream, num_workers=workers)


def ids(batches):
    return [[example.id for example in batch] for batch in batches]


def test_what_is_not_admitted_is_left_out_and_counted():
    batches = list(loader())
    assert sorted(int(name[1:]) for batch in ids(batches) for name in batch) == list(range(0, 40, 2))
    assert [batch.dropped for batch in batches] == sorted(batch.dropped for batch in batches)
    assert batches[-1].dropped == 20
    assert sum(batch.shrunk for batch in batches) == 10
    assert {e.prompt for batch in batches for e in batch if int(e.id[1:]) % 4 == 0} == {"shorter"}


def test_an_epoch_is_counted_on_its_own():
    data = loader()
    assert [list(data)[-1].dropped for _ in range(2)] == [20, 20]


def test_blocks_that_are_left_out_whole_do_not_end_the_epoch():
    found = sum(ids(loader(start=30)), [])
    assert len(set(found)) == 4  # of five, which do not fill another batch of two
    assert set(found) < {"n30", "n32", "n34", "n36", "n38"}
    with pytest.raises(ValueError, match="training data hold fewer .* 40 were left out, .* example 'n[0-6]'"):
        next(iter(loader(start=40)))
    data = PreferenceDataModule(validation=Numbers(4))
    data.budget = EvenOnly(start=4)
    with pytest.raises(ValueError, match="validation data hold fewer .* 4 were left out, .* example 'n0'"):
        next(iter(data.val_dataloader()))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_ranks_deal_the_same_examples(workers):
    whole = ids(loader())
    batches = list(loader(workers=workers))
    assert ids(batches) == whole
    assert max(batch.dropped for batch in batches) == 20
    ranks = [ids(loader(rank=rank, world_size=2)) for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1])
    assert [sum(pair, []) for pair in zip(*ranks, strict=True)] == [
        whole[i] + whole[i + 1] for i in range(0, len(whole), 2)
    ]


@pytest.mark.parametrize("used", [1, 4, 9])
def test_a_resume_goes_on_after_what_was_left_out(used):
    data = loader()
    whole = ids(loader())
    for _, _batch in zip(range(used), data, strict=False):
        pass
    state = data.state_dict()
    again = loader()
    again.load_state_dict(state)
    assert ids(again) == whole[used:]


def test_the_data_modules_leave_out_in_training_replay_and_validation():
    data = PreferenceDataModule(Numbers(12), Numbers(12), batch_size=2)
    data.budget = EvenOnly()
    for batches in (
        list(data.train_dataloader()),
        list(data.val_dataloader()),
        list(data.distillation_batches()),
    ):
        assert sorted(int(name[1:]) for batch in ids(batches) for name in batch) == list(range(0, 12, 2))
    mixed = CaptionPreferenceDataModule(Numbers(24, captions=True), replay=Numbers(24), batch_size=5)
    mixed.budget = EvenOnly()
    found = list(mixed.train_dataloader())
    assert all(int(name[1:]) % 2 == 0 for batch in ids(found) for name in batch)
    assert all(sum(example.task_type == "text" for example in batch) == 1 for batch in found)
