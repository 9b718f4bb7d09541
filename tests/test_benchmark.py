"""What holds for every benchmark: votes, early stopping, confidence, partial records, two judges compared."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from data_modules.benchmarks import find
from lit_msrl import ballots
from lit_msrl.benchmark import compare, fingerprint, score
from lit_msrl.types import PreferenceExample
from lit_msrl.voting import decided, rounds
from tests.benchmarks.made import always_a, examples_of, oracle, record, records

JUDGEBENCH = find("judgebench")
FEW = examples_of("judgebench")
MANY = [replace(FEW[i % 5], id=f"q{i:03}", winner=1) for i in range(300)]


def votes(example: PreferenceExample, said: list, **more):
    """The example's judgements in the order in which they count."""
    asked = sorted(
        [record(example, o, s, 1) for s in range(len(said)) for o in ("AB", "BA")],
        key=lambda r: (r.sample, (r.order == "BA") != ballots.coin(r.id, r.sample)),
    )
    return [replace(r, preferred=p, **more) for r, p in zip(asked, said, strict=False)]


def test_votes_count_in_turn_and_a_draw_goes_to_the_first():
    example = replace(FEW[0], winner=1)
    made = votes(example, [1, 2, 2, 2, 1, 1, 1, 2], tokens=10)
    card = score(JUDGEBENCH, [example], made)
    found = {f.name: f.value for s in card.sections if s.protocol == "voting" for f in s.figures}
    # after 1: 1. After 4: 1 2 2 2 -> 2. After 8: four each -> the first, 1.
    assert [found[f"vote@{k}"] for k in (1, 4, 8)] == [1.0, 0.0, 1.0]
    assert [found[f"tokens@{k}"] for k in (1, 4, 8)] == [10, 40, 80]
    assert "vote@2" not in found, "of two votes the first decides"


def test_tokens_until_the_vote_is_decided():
    example = replace(FEW[0], winner=1)
    card = score(JUDGEBENCH, [example], votes(example, [1, 1, None, 1, 1, 1], tokens=10))
    assert card["voting", "tokens@6, stopped when decided"].value == 50  # the fourth "1" is the fifth vote


def test_rounds_and_decisions():
    assert rounds(1, early_stop=True) == [range(0, 1)]
    assert [len(r) for r in rounds(16, early_stop=True)] == [9, *[1] * 7]
    assert not decided([1, 1, 2, 2], 4)
    assert decided([1, 1, 1], 5)
    assert not decided([], 1)


def test_early_stopping_does_not_bias_what_is_averaged_over_judgements():
    coin = random.Random(0)
    full = records(MANY, lambda e, o, s: 1 if coin.random() < 0.7 else 2, samples=5)
    by_id = {e.id: [r for r in full if r.id == e.id] for e in MANY}
    stopped = []
    for made in by_id.values():
        made.sort(key=lambda r: r.sample)
        for samples in rounds(5, early_stop=True):
            kept = [r for r in made if r.sample < samples.start]
            if not decided([r.preferred for r in kept], 10):
                stopped += [r for r in made if r.sample in samples]
    assert len(stopped) < len(full)
    whole, short = (score(JUDGEBENCH, MANY, made) for made in (full, stopped))
    # an example's samples are the first three in both: exactly the same figures as with three samples
    three = score(JUDGEBENCH, MANY, [r for r in full if r.sample < 3])
    for name in ("strict", "robust"):
        assert short[name, "overall"] == three[name, "overall"]
    assert short["judge", "swap consistency"] == three["judge", "swap consistency"]
    assert short["voting", "vote@10"].value == pytest.approx(whole["voting", "vote@10"].value)


def test_confidence_comes_from_votes_or_from_the_judge():
    example = replace(FEW[0], winner=1)
    assert ballots.confidence(tuple(votes(example, [1, 1, 2, None])), 1) == pytest.approx(
        (1 + 1 + 0 + 0.5) / 4
    )
    sure = tuple(votes(example, [1, 2], confidence=0.9))
    assert ballots.confidence(sure, 1) == pytest.approx((0.9 + 0.1) / 2)
    assert ballots.confidence(tuple(votes(example, [None])), None) == 0.0


def test_agreement_needs_more_than_half_of_all_judgements():
    example = replace(FEW[0], winner=1)
    cases = {(1, 1, 2): True, (2, 2, 1): False, (1, 2): None, (1, None, None): None, ("tie", "tie"): False}
    for said, expected in cases.items():
        assert ballots.agreement(tuple(votes(example, list(said)))) is expected


def test_records_that_lack_examples_are_refused_unless_asked_for():
    made = records(FEW[:3], oracle)
    with pytest.raises(ValueError, match="2 of 5 examples have no record, such as 'j3'; .* --partial"):
        score(JUDGEBENCH, FEW, made)
    card = score(JUDGEBENCH, FEW, made, partial=True)
    assert (card.examples, card.absent, card["strict", "overall"].n) == (3, 2, 3)
    with pytest.raises(ValueError, match="5 of 5 examples have no record"):
        score(JUDGEBENCH, FEW, [], partial=True)


def test_a_scorecard_is_json_and_says_what_it_is_about():
    card = score(JUDGEBENCH, FEW, records(FEW, lambda e, o, s: None))
    plain = json.loads(json.dumps(card.to_json(), allow_nan=False))
    assert plain["data"] == fingerprint(FEW) == fingerprint(FEW[::-1])
    rows = {(r["protocol"], r["figure"]): r for r in plain["figures"]}
    assert rows["judge", "first-position rate"]["value"] is None
    assert rows["strict", "overall"] == {
        "protocol": "strict", "figure": "overall", "value": 0.0, "ci95": [0.0, 0.0], "n": 5,
    }  # fmt: skip
    assert fingerprint([replace(FEW[0], winner="tie"), *FEW[1:]]) != fingerprint(FEW)


def test_two_judges_compared():
    coin = random.Random(0)
    better = records(MANY, lambda e, o, s: 1 if coin.random() < 0.8 else 2)
    sections, tests = compare(JUDGEBENCH, MANY, better, records(MANY, always_a))
    strict = next(s for s in sections if s.protocol == "strict").figures[0]
    assert strict.value == pytest.approx(tests["difference"])
    assert tests["of"] == "judgements"
    assert tests["p_value"] < 0.001 < strict.value
    assert strict.ci95 == pytest.approx(tests["ci95"], abs=0.01)
    _, same = compare(JUDGEBENCH, MANY, better, better)
    assert (same["difference"], same["mcnemar_p"]) == (0.0, 1.0)


def test_judges_with_other_numbers_of_samples_are_compared_by_their_votes():
    one, three = records(MANY, oracle), records(MANY, always_a, samples=3)
    _, tests = compare(JUDGEBENCH, MANY, one, three)
    first = [ballots.vote(j.records) == 1 for j in ballots.pair_up(MANY, three)]
    assert tests["of"] == "votes"
    assert tests["difference"] == pytest.approx(1 - sum(first) / len(first))


def test_judges_of_other_examples_are_not_compared():
    with pytest.raises(ValueError, match="1 were judged by one of them only"):
        compare(JUDGEBENCH, FEW, records(FEW, oracle), records(FEW[1:], oracle))
