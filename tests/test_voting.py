"""Majority votes."""

from collections.abc import Sequence
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_msrl.types import Letter
from lit_msrl.voting import majority


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ("A", "A"),
        ("AAB", "A"),
        ("BAB", "B"),
        ("AB", None),
        ("ABBA", None),
        ("", None),
        ("--", None),
        ("-B-", "B"),  # unread verdicts do not vote
        ("--AB--B", "B"),
    ],
)
def test_by_hand(votes: str, expected: Letter | None) -> None:
    read: dict[str, Letter | None] = {"A": "A", "B": "B", "-": None}
    assert majority([read[vote] for vote in votes]) == expected


VOTES = st.lists(st.sampled_from([*get_args(Letter), None]))


@given(VOTES, st.randoms())
def test_the_order_of_votes_does_not_matter(votes: list[Letter | None], random) -> None:
    mixed = list(votes)
    random.shuffle(mixed)
    assert majority(mixed) == majority(votes)


@given(VOTES)
def test_renaming_the_candidates_renames_the_verdict(votes: list[Letter | None]) -> None:
    assert majority(_renamed(votes)) == _renamed([majority(votes)])[0]


def _renamed(votes: Sequence[Letter | None]) -> list[Letter | None]:
    other: dict[Letter | None, Letter | None] = {"A": "B", "B": "A", None: None}
    return [other[vote] for vote in votes]
