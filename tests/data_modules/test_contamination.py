"""Near-duplicates are found and told from stock phrases."""

from __future__ import annotations

import pytest

from data_modules.contamination import jaccard, near_duplicates, triples

LONG = (
    "Write a short story about a lighthouse keeper who finds a letter in a bottle and decides to answer it."
)


def found(training: str, *benchmark: str):
    return list(near_duplicates([("t", training)], [(f"b{i}", text) for i, text in enumerate(benchmark)]))


def test_similarity_is_that_of_word_triples():
    assert triples("One two, THREE four") == {"one two three", "two three four"}
    assert triples("Why?") == {"why"}
    assert triples("") == {""}
    assert jaccard(triples("a b c d"), triples("a b c x")) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "changed", [LONG, LONG.upper(), LONG.replace(".", " !"), LONG.replace("answers it", "answers him")]
)
def test_small_changes_do_not_hide_a_prompt(changed):
    (match,) = found(LONG, "something quite different about cats and dogs in the rain", changed)
    assert (match.training, match.benchmark) == ("t", "b1")
    assert match.similarity >= 0.7
    assert match.telling


def test_other_prompts_are_not_matched():
    assert not found(LONG, "Write a short story about a dragon who collects spoons and never sleeps.")
    assert not found("What is two plus two?")


def test_the_most_alike_is_named_and_a_stock_phrase_tells_nothing():
    (match,) = found(LONG, LONG.replace("finds", "opens"), LONG)
    assert match.benchmark == "b1"
    (match,) = found("Describe this image in detail.", "describe this image in detail")
    assert match.similarity == 1.0
    assert not match.telling
