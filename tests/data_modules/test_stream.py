"""The order: seeded, dealt without overlap or loss, and resumed exactly."""

from functools import partial

import pytest

from data_modules.order import ShuffledSource
from data_modules.stream import BatchStream, ResumableLoader
from tests.data_modules.made import Numbers


def identity(example):
    return example


def loader(count=40, *, batch_size=4, block=7, workers=0, rank=0, world_size=1, seed=0, drop_last=True):
    order = partial(ShuffledSource, Numbers(count), block=block, seed=seed)
    stream = BatchStream(
        order, batch_size=batch_size, decode=identity, rank=rank, world_size=world_size, drop_last=drop_last
    )
    return ResumableLoader(stream, num_workers=workers)


def ids(batches):
    return [[example.id for example in batch] for batch in batches]


def flat(batches):
    return [name for batch in ids(batches) for name in batch]


def test_an_epoch_is_a_seeded_permutation():
    names = {f"n{i}" for i in range(40)}
    first = flat(loader())
    assert set(first) == names
    assert len(first) == 40
    assert first != sorted(first, key=lambda name: int(name[1:]))
    assert flat(loader()) == first
    assert flat(loader(seed=1)) != first


def test_epochs_differ_and_hold_everything():
    data = loader()
    first, second = flat(data), flat(data)
    assert first != second
    assert sorted(first) == sorted(second)


def test_block_zero_keeps_the_order():
    assert flat(loader(70, block=0, batch_size=10)) == [f"n{i}" for i in range(70)]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("used", [0, 1, 3, 9, 10])
def test_resume_gives_exactly_the_remaining_batches(workers, used):
    data = loader(43, workers=workers)
    batches = iter(data)
    for _ in range(used):
        next(batches)
    state = data.state_dict()
    rest = ids(batches)
    again = loader(43, workers=workers)
    again.load_state_dict(state)
    if used == 10:
        rest = ids(data)  # an epoch's last batch points to the next epoch
    assert len(rest) == (10 - used or 10)
    assert ids(again) == rest


def test_state_holds_for_other_numbers_of_workers_and_ranks():
    data = loader(48, batch_size=8)
    batches = iter(data)
    next(batches)
    state = data.state_dict()
    rest = flat(batches)
    shares = []
    for rank in range(2):
        again = loader(48, batch_size=4, workers=2, rank=rank, world_size=2)
        again.load_state_dict(state)
        shares.append(ids(again))
    assert [name for pair in zip(*shares, strict=True) for share in pair for name in share] == rest


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_share_without_overlap_or_loss(workers):
    shares = [ids(loader(43, workers=workers, rank=rank, world_size=2)) for rank in range(2)]
    assert [len(share) for share in shares] == [5, 5]  # 43 = 5 steps of 8 and a rest that fills no step
    seen = [name for share in shares for batch in share for name in batch]
    assert len(seen) == len(set(seen)) == 40
    whole = ids(loader(43, batch_size=8))
    assert [a + b for a, b in zip(*shares, strict=True)] == whole


def test_workers_do_not_change_the_order():
    assert ids(loader(43, workers=0)) == ids(loader(43, workers=2))


def test_without_drop_last_the_rest_comes_too():
    assert [len(batch) for batch in loader(43, drop_last=False)] == [4] * 10 + [3]
    shares = [ids(loader(43, rank=rank, world_size=2, drop_last=False)) for rank in range(2)]
    assert [[len(batch) for batch in share] for share in shares] == [[4] * 5 + [1]] * 2


def test_too_few_examples_for_a_step_are_an_error():
    with pytest.raises(ValueError, match="fewer examples than one step takes: batch_size 4 x 2 ranks"):
        next(iter(loader(7, world_size=2)))


def test_iteration_goes_on_after_the_last_batch_used():
    data = loader()
    batches = iter(data)
    head = [next(batches) for _ in range(3)]
    assert sorted(flat(head) + flat(data)) == sorted(f"n{i}" for i in range(40))


def test_cycle_begins_again_and_refuses_an_empty_source():
    order = ShuffledSource(Numbers(3), block=2, cycle=True)
    names = [next(order).id for _ in range(9)]
    assert [sorted(names[i : i + 3]) for i in (0, 3, 6)] == [["n0", "n1", "n2"]] * 3
    with pytest.raises(ValueError, match="0 numbers n: holds no examples"):
        next(ShuffledSource(Numbers(0), block=2, cycle=True))
