"""A judge measured: in both orders, and in terms of the source's candidates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data_modules import World
from lit_msrl.engines import Sampling
from lit_msrl.evaluation import judge, load_weights
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import JudgingPrompt, shown_first, write
from lit_msrl.records import JudgementRecord
from lit_msrl.types import PreferenceExample
from tests.conftest import tiny_internvl
from tests.fakes import ScriptedEngine

WORLD = World(["text", "image generation", "video understanding"], size=9)
EXAMPLES = [WORLD.example(index) for index in range(9)]
TIE = PreferenceExample("tie", "text", "2+2?", "tie", candidates=("4", "four"))


def verdict(prompt: JudgingPrompt, letter: str) -> str:
    return write(prompt, think="thus", answer=letter)


def oracle(prompt: JudgingPrompt) -> list[tuple[str, float]]:
    assert prompt.label is not None
    return [(verdict(prompt, prompt.label), -0.1)]


def always_a(prompt: JudgingPrompt) -> list[tuple[str, float]]:
    return [(verdict(prompt, "A"), -0.1)]


@pytest.fixture(scope="module")
def policy() -> GenerativeRMPolicy:
    return tiny_internvl()


def records(
    policy: GenerativeRMPolicy, script, examples: Sequence[PreferenceExample] = EXAMPLES, **options
) -> list[JudgementRecord]:
    engine = ScriptedEngine(script)
    shared: dict[str, Any] = {"view": "visual", "style": "compact", "max_completion": 9}
    found = judge(policy, engine, examples, **(shared | options))
    assert all(sampling == Sampling(1, 9, 0.0) for sampling, _ in engine.calls), "verdicts are greedy"
    return found


def accuracy(found: Sequence[JudgementRecord]) -> float:
    return sum(record.correct for record in found) / len(found)


def test_an_oracle_is_always_right(policy: GenerativeRMPolicy) -> None:
    found = records(policy, oracle)
    assert accuracy(found) == 1.0
    assert all(record.well_formed for record in found)
    assert [record.preferred for record in found] == [e.winner for e in EXAMPLES for _ in range(2)]
    assert {e.winner for e in EXAMPLES} == {1, 2}


def test_a_judge_that_always_says_a_is_right_half_the_time(policy: GenerativeRMPolicy) -> None:
    found = records(policy, always_a)
    assert accuracy(found) == 0.5
    assert [record.preferred for record in found] == [1, 2] * len(EXAMPLES)
    assert all(record.chose_first for record in found)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_records_come_in_order_whatever_the_batch(policy: GenerativeRMPolicy, batch_size: int) -> None:
    found = records(policy, oracle, EXAMPLES[:4], batch_size=batch_size, view="caption")
    assert [(r.id, r.order) for r in found] == [(e.id, o) for e in EXAMPLES[:4] for o in ("AB", "BA")]
    assert [r.task_type for r in found] == [e.task_type for e in EXAMPLES[:4] for _ in range(2)]


def test_one_order_is_the_hash_of_the_id(policy: GenerativeRMPolicy) -> None:
    found = records(policy, oracle, both_orders=False)
    assert [r.order for r in found] == ["BA" if shown_first(e.id) else "AB" for e in EXAMPLES]
    assert {r.order for r in found} == {"AB", "BA"}
    assert accuracy(found) == 1.0


def test_ties_are_not_judged(policy: GenerativeRMPolicy) -> None:
    assert {r.id for r in records(policy, always_a, [TIE, EXAMPLES[0], TIE])} == {EXAMPLES[0].id}


def test_what_cannot_be_read_prefers_nobody(policy: GenerativeRMPolicy) -> None:
    found = records(policy, lambda prompt: [("it is A", -0.1)], EXAMPLES[:2])
    assert [(r.preferred, r.correct, r.well_formed) for r in found] == [(None, False, False)] * 4
    assert {r.text for r in found} == {"it is A"}


def test_weights_of_a_stage_are_loaded(policy: GenerativeRMPolicy, tmp_path: Path) -> None:
    other = tiny_internvl(seed=5)
    state = {f"policy.{name}": tensor for name, tensor in other.state_dict().items()}
    torch.save({"state_dict": state | {"else": torch.ones(1)}, "stage": "stage2"}, tmp_path / "last.ckpt")
    fresh = tiny_internvl(seed=6)
    assert load_weights(fresh, tmp_path / "last.ckpt") == "stage2"
    for (name, expected), found in zip(other.named_parameters(), fresh.parameters(), strict=True):
        assert found.equal(expected), name


def test_other_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such checkpoint"):
        load_weights(tiny_internvl(), tmp_path / "none.ckpt")
    torch.save({"state_dict": {"policy.x": torch.ones(1)}, "stage": "stage2"}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="holds another model than the policy"):
        load_weights(tiny_internvl(), tmp_path / "other.ckpt")
