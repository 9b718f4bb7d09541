"""CMKD's choice among samples: the vote first, then the format, then the confidence."""

import pytest

from lit_msrl.distill import select
from lit_msrl.prompts import Judgement, parse

TAGS = ("think", "answer")
READ = {
    "A": "<think>because</think><answer>A</answer>",
    "B": "<think>because</think><answer>B</answer>",
    "a": "so: <think>because</think><answer>A</answer>",  # a verdict, badly formed
    "b": "so: <think>because</think><answer>B</answer>",
    "-": "<think>because",  # no verdict
}


def judgements(samples: str) -> list[Judgement]:
    return [parse(READ[sample], TAGS) for sample in samples]


@pytest.mark.parametrize(
    ("samples", "confidences", "expected"),
    [
        ("AAB", [-0.9, -0.5, -0.1], 1),  # the most confident loses the vote
        ("BBA", [-0.9, -0.5, -0.1], 1),
        ("AaA", [-0.9, -0.1, -0.5], 2),  # the most confident supporter is badly formed
        ("ABb", [-0.5, -0.3, -0.1], 1),  # badly formed samples vote: B wins
        ("Aabbb", [-0.5, -0.4, -0.3, -0.2, -0.1], None),  # B wins, and nothing well-formed supports it
        ("aaB", [-0.5, -0.3, -0.1], None),
        ("AB", [-0.5, -0.1], None),  # undecided
        ("ABA-B", [-0.5, -0.4, -0.3, -0.2, -0.1], None),
        ("---A", [-0.1, -0.1, -0.1, -9.0], 3),
        ("--", [-0.1, -0.1], None),
        ("", [], None),
        ("AA", [-0.5, -0.5], 0),  # the first of equals
    ],
)
def test_by_hand(samples: str, confidences: list[float], expected: int | None) -> None:
    assert select(judgements(samples), confidences) == expected


def test_the_fixtures_are_what_they_say() -> None:
    assert [j.answer for j in judgements("ABab-")] == ["A", "B", "A", "B", None]
    assert [j.well_formed for j in judgements("ABab-")] == [True, True, False, False, False]
