"""Judges whose scores are known, on every benchmark, in both orders."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from data_modules.benchmarks import find, load, names
from lit_msrl.ballots import coin
from lit_msrl.benchmark import Scorecard, score
from tests.benchmarks.made import (
    ROWS,
    always_a,
    always_wrong,
    at_random,
    examples_of,
    oracle,
    records,
    scored,
    silent,
    write_rows,
)
from tests.experiments.made import REPOSITORY

TIED = ("genai_bench", "videogen_rewardbench")
PUBLISHED_ONLY = ("judge", "voting", "confidence")


def accuracies(card: Scorecard) -> dict[tuple[str, str], float]:
    """Every accuracy of a scorecard."""
    return {
        (s.protocol, f.name): f.value
        for s in card.sections
        if s.protocol not in PUBLISHED_ONLY
        for f in s.figures
    }


def test_every_benchmark_has_rows_here():
    assert set(names()) == set(ROWS)
    assert all(find(name).version >= 1 for name in names())


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("name", ROWS)
def test_an_oracle_is_always_right(name, samples):
    card = scored(name, oracle, samples)
    ties = {"pairwise", "pairwise, both orders"}  # the formula's maximum is 0.3 + 0.3 + 0.2 + 0.2 + 0.01
    for (protocol, figure), value in accuracies(card).items():
        above = {"Ties": 0.01, "overall": 0.01 / 6}.get(figure, 0.0) if protocol in ties else 0.0
        assert value == pytest.approx(1 + above), (protocol, figure)
    assert card["judge", "swap consistency"].value == 1.0
    assert card["judge", "parse failures"].value == 0.0


@pytest.mark.parametrize("name", ROWS)
def test_a_judge_that_is_always_wrong_scores_nothing(name):
    for key, value in accuracies(scored(name, always_wrong)).items():
        if key[1] == "with ties" and key[0] == "orders as ties":
            continue
        if "with ties" in key[1] and name == "videogen_rewardbench" and key[0].startswith("official"):
            assert value == pytest.approx(1 / 3)  # the best threshold calls all six a tie: two are
        elif "Ties" in key[1] and name == "rewardbench_2" and "pairwise" in key[0]:
            assert value == pytest.approx(-0.01)  # the tanh term
        elif key[1] == "overall" and name == "rewardbench_2" and "pairwise" in key[0]:
            assert value == pytest.approx(-0.01 / 6)
        else:
            assert value == pytest.approx(0.0), key


@pytest.mark.parametrize("name", ROWS)
def test_a_judge_that_always_says_a_is_at_chance_and_is_found_out(name):
    card = scored(name, always_a)
    clear = [e for e in examples_of(name) if e.winner != "tie"]
    share = len(clear) / len(examples_of(name))
    assert card["strict", "overall"].value == pytest.approx(0.5 * share)
    assert card["robust", "overall"].value == 0.0
    assert card["judge", "first-position rate"].value == 1.0
    assert card["judge", "swap consistency"].value == 0.0


@pytest.mark.parametrize("name", ROWS)
def test_a_silent_judge_is_strictly_wrong_everywhere(name):
    card = scored(name, silent)
    assert card["strict", "overall"].value == card["robust", "overall"].value == 0.0
    assert card["judge", "parse failures"].value == 1.0
    assert math.isnan(card["judge", "first-position rate"].value)
    assert card["judge", "swap consistency"].value == 0.0


@pytest.mark.parametrize("name", ROWS)
def test_a_judge_that_tosses_a_coin_is_at_chance(name):
    examples = examples_of(name)
    share = sum(e.winner != "tie" for e in examples) / len(examples)
    samples = 100
    card = score(find(name), examples, records(examples, at_random(), samples))
    tolerance = 4 * 0.5 / math.sqrt(2 * samples * len(examples))
    assert card["strict", "overall"].value == pytest.approx(0.5 * share, abs=tolerance)
    assert card["judge", "first-position rate"].value == pytest.approx(0.5, abs=tolerance)
    assert card["judge", "swap consistency"].value == pytest.approx(0.5, abs=2 * tolerance)


@pytest.mark.parametrize("name", ROWS)
def test_no_score_depends_on_the_order_of_rows_or_records(name, tmp_path):
    rows = ROWS[name]
    if name in ("vl_rewardbench", "genai_bench"):
        rows = [{k: "x.png" if k == "image" else v for k, v in row.items()} for row in rows]
    rows = rows + rows[:1]  # one row twice
    shuffled = random.Random(1).sample(rows, len(rows))
    cards = []
    for i, order in enumerate((rows, shuffled)):
        examples = load(name, write_rows(tmp_path / f"{i}.jsonl", *order))
        made = records(examples, lambda e, o, s: 1 if coin(e.id + o, s) else 2, samples=3)
        random.Random(i).shuffle(made)
        cards.append(score(find(name), examples, made).to_json())
    assert cards[0] == cards[1]


@pytest.mark.parametrize("name", ROWS)
def test_groups_make_up_the_whole(name):
    benchmark, examples = find(name), examples_of(name)
    card = score(benchmark, examples, records(examples, at_random(3), 2))
    strict = {f.name: f for s in card.sections if s.protocol == "strict" for f in s.figures}
    groups = {benchmark.group(e) for e in examples}
    if len(groups) == 1:
        assert set(strict) == {"overall"}
        return
    pairs = {g: sum(benchmark.group(e) == g for e in examples) for g in groups}
    micro = sum(pairs[g] * strict[g].value for g in groups) / len(examples)
    assert strict["overall"].value == pytest.approx(micro)
    if benchmark.macro:
        assert strict["macro"].value == pytest.approx(sum(strict[g].value for g in groups) / len(groups))
    for figure in strict.values():
        assert figure.ci95 is None or figure.ci95[0] <= figure.value <= figure.ci95[1]


@pytest.mark.parametrize("name", ROWS)
def test_one_order_is_enough_for_what_needs_no_more(name):
    examples = examples_of(name)
    card = score(find(name), examples, records(examples, oracle, orders=("AB",)))
    assert "robust" in card.left_out
    assert card["strict", "overall"].value == 1.0


def test_a_benchmark_of_ones_own_is_found_by_its_dotted_name():
    assert find("data_modules.benchmarks.judgebench") is find("judgebench")
    with pytest.raises(ValueError, match="unknown benchmark 'judgebenc'; use genai_bench, judgebench"):
        find("judgebenc")


def test_the_manuals_benchmark_works(tmp_path, monkeypatch):
    manual = (REPOSITORY / "docs" / "evaluation.md").read_text()
    (tmp_path / "manual_benchmark").mkdir()
    (tmp_path / "manual_benchmark" / "mine.py").write_text(manual.split("```python\n")[1].split("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    rows = [
        {"id": f"r{i}", "question": "?", "a": "yes", "b": "no", "better": 1 + i % 2, "topic": f"t{i % 3}"}
        for i in range(6)
    ]
    name = "manual_benchmark.mine"
    examples = load(name, write_rows(tmp_path / "rows.jsonl", *rows))
    card = score(find(name), examples, records(examples, always_a))
    assert card["official", "overall"].value == 0.5
    assert {f.name for s in card.sections if s.protocol == "official" for f in s.figures} > {"t0", "t1", "t2"}


def test_what_is_said_twice_of_a_pair_is_one_item():
    examples = examples_of("videogen_rewardbench")
    twice = [replace(e, id=f"{e.id}~2", facts={**e.facts, "item": e.id}) for e in examples]
    card = score(find("videogen_rewardbench"), examples + twice, records(examples + twice, oracle))
    assert card.examples == 12
    assert card["strict", "overall"].n == 6
