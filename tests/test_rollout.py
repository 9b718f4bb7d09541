"""Cutting what was sampled into micro-batches."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch.testing import assert_close

from lit_msrl.prompts import parse, render
from lit_msrl.rollout import Rollout
from lit_msrl.types import PreferenceExample


@dataclass
class Encoded:
    """Stands for ``policy.PromptBatch``: something that can be cut."""

    rows: list[int]

    def select(self, groups: slice) -> "Encoded":
        return Encoded(self.rows[groups])


LENGTHS = [1, 2, 4, 1, 3, 3]  # three groups of two; T = 5: the last column only pads


def make(**changes) -> Rollout:
    prompts = [render(PreferenceExample(str(i), "text", "2+2?", 1, candidates=("4", "5"))) for i in range(3)]
    texts = [f"completion {row}" for row in range(6)]
    numbers = torch.arange(6.0)
    fields = {
        "prompts": prompts,
        "batch": Encoded([0, 1, 2]),
        "completion_ids": torch.arange(30).view(6, 5),
        "completion_mask": torch.arange(5) < torch.tensor(LENGTHS)[:, None],
        "group_size": 2,
        "texts": texts,
        "judgements": [parse(text, ("think", "answer")) for text in texts],
        "rewards": numbers,
        "reward_parts": {"format": numbers + 10},
        "advantages": numbers + 20,
        "truncated": numbers > 3,
        "normalizer": torch.tensor(14.0),
        "sampler_logprobs": -torch.arange(30.0).view(6, 5) - 2,
        "old_logprobs": -torch.arange(30.0).view(6, 5),
        "ref_logprobs": -torch.arange(30.0).view(6, 5) - 1,
    }
    return Rollout(**(fields | changes))


@pytest.mark.parametrize(
    ("groups", "sizes", "widths"), [(1, [2, 2, 2], [2, 4, 3]), (2, [4, 2], [4, 3]), (9, [6], [4])]
)
def test_cut_between_groups_and_trimmed(groups: int, sizes: list[int], widths: list[int]) -> None:
    whole = make()
    parts = list(whole.micro_batches(groups))
    assert [len(part.rewards) for part in parts] == sizes
    assert [part.completion_ids.shape[1] for part in parts] == widths
    start = 0
    for part, size, width in zip(parts, sizes, widths, strict=True):
        rows = slice(start, start + size)
        assert part.batch.rows == list(range(start // 2, (start + size) // 2))
        for name in ("rewards", "advantages", "truncated"):
            assert_close(getattr(part, name), getattr(whole, name)[rows])
        columns = ("completion_ids", "completion_mask", "sampler_logprobs", "old_logprobs", "ref_logprobs")
        for name in columns:
            assert_close(getattr(part, name), getattr(whole, name)[rows, :width])
        start += size


def test_a_micro_batch_knows_the_totals_of_its_step() -> None:
    for part in make().micro_batches(1):
        assert (part.normalizer.item(), part.step_tokens.item()) == (14, sum(LENGTHS))
    for part in make(tokens=torch.tensor(100)).micro_batches(1):  # two ranks, say
        assert part.step_tokens.item() == 100


def test_nothing_is_trimmed_that_counts_later() -> None:
    mask = torch.zeros(6, 5, dtype=torch.bool)
    mask[0, 3] = True
    assert [part.completion_mask.shape[1] for part in make(completion_mask=mask).micro_batches(1)] == [
        4,
        1,
        1,
    ]


def test_join_undoes_the_cut() -> None:
    whole = make()
    joined = whole.join([part.old_logprobs for part in whole.micro_batches(1)])  # type: ignore[misc]
    assert joined.shape == whole.completion_ids.shape
    assert whole.old_logprobs is not None
    assert_close(joined[whole.completion_mask], whole.old_logprobs[whole.completion_mask])
    assert replace(whole, ref_logprobs=joined).ref_logprobs is joined


def test_no_log_probs_stay_none() -> None:
    part = next(make(old_logprobs=None, ref_logprobs=None).micro_batches(1))
    assert part.old_logprobs is part.ref_logprobs is None


@pytest.mark.parametrize("groups", [0, -1])
def test_empty_micro_batches_are_refused(groups: int) -> None:
    with pytest.raises(ValueError, match="must be 1 or more"):
        next(make().micro_batches(groups))


def test_broken_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="6 completions are not 3 groups of 4"):
        make(group_size=4)
