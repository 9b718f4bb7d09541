"""Groups that teach nothing, replaced: what a step then learns from, what waits, and that none is lost."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch.testing import assert_close

from lit_msrl.engines import RolloutEngine
from lit_msrl.losses import GRPOLoss
from lit_msrl.rollout import Lesson, Rollout
from lit_msrl.stages.lessons import Pool, select
from tests.conftest import tiny_internvl
from tests.fakes import ScriptedEngine
from tests.stages.test_lessons import script
from tests.stages.test_rlvr import Stage, Uneven, data, trainer

BATCH = 6  # prompts


class Watched(Stage):
    """Remembers every round: what was sampled, what was learned from, and with which weights."""

    def lessons(self, rollout: Rollout) -> list[Lesson]:
        before = copy.deepcopy(self.policy)
        lessons = super().lessons(rollout)
        self.rounds = [*vars(self).get("rounds", []), (rollout, lessons, before)]
        return lessons


def stage(engine: RolloutEngine | None = None, **options: Any) -> Watched:
    defaults: dict[str, Any] = {
        "group_size": 4,
        "micro_batch_size": 4,
        "max_completion": 32,
        "style": "compact",
    }
    return Watched(
        tiny_internvl(seed=1),
        {"language": 0.1, "projector": 0.1, "vision": 0.1},
        partial(torch.optim.SGD, lr=0.1),
        options.pop("loss", None) or GRPOLoss(),
        engine=engine or ScriptedEngine(script),
        **(defaults | options),
    )


def fitted(tmp_path: Path, *, max_steps: int = 3, **options: Any) -> Watched:
    made = stage(**options)
    trainer(tmp_path, max_steps=max_steps).fit(made, data(BATCH))
    return made


def groups(lesson: Lesson) -> list[tuple[int, ...]]:
    """What tells groups apart: the tokens of their prompts."""
    rows = zip(lesson.batch.input_ids, lesson.batch.attention_mask.bool(), strict=True)
    return [tuple(ids[mask].tolist()) for ids, mask in rows]


def taught(rollout: Rollout) -> list[tuple[int, ...]]:
    teaches = (rollout.advantages.view(-1, 4) != 0).any(1)
    return [group for group, yes in zip(groups(rollout), teaches.tolist(), strict=True) if yes]


class TestAStep:
    def test_learns_from_as_many_groups_as_a_batch_holds_and_nothing_is_lost(self, tmp_path) -> None:
        made = fitted(tmp_path, max_rounds=20, max_steps=4)
        steps = [lessons for _, lessons, _ in made.rounds if lessons]
        assert len(steps) == made.global_step == 4
        assert len(made.rounds) > 4
        learned = [[group for lesson in step for group in groups(lesson)] for step in steps]
        assert [len(step) for step in learned] == [BATCH] * 4
        waiting = [group for lesson in made.pool.waiting for group in groups(lesson)]
        assert len(waiting) == made.pool.groups > 0
        offered = [group for rollout, _, _ in made.rounds for group in taught(rollout)]
        assert [group for step in learned for group in step] + waiting == offered

    def test_is_normalised_by_what_it_learns_from(self, tmp_path) -> None:
        made = fitted(tmp_path, max_rounds=20, loss=GRPOLoss(aggregate="constant"))
        for step in (lessons for _, lessons, _ in made.rounds if lessons):
            tokens = sum(lesson.completion_mask.sum() for lesson in step)
            for lesson in step:
                assert lesson.step_tokens == tokens
                assert lesson.normalizer == BATCH * 4 * 32

    def test_gives_up_at_the_cap(self, tmp_path) -> None:
        made = fitted(tmp_path, max_rounds=2)
        assert [bool(lessons) for _, lessons, _ in made.rounds] == [False, True] * 3
        for i in (0, 2, 4):
            offered = taught(made.rounds[i][0]) + taught(made.rounds[i + 1][0])
            learned = [group for lesson in made.rounds[i + 1][1] for group in groups(lesson)]
            assert learned == offered
            assert 0 < len(learned) < BATCH

    def test_is_taken_even_if_nothing_teaches(self, tmp_path) -> None:
        made = fitted(tmp_path, max_rounds=2, engine=ScriptedEngine(lambda _: [("a", -1.0)] * 4))
        assert [len(lessons) for _, lessons, _ in made.rounds] == [0, 1] * 3
        for (name, found), (_, before) in zip(
            made.policy.named_parameters(), tiny_internvl(seed=1).named_parameters(), strict=True
        ):
            assert found.equal(before), name

    def test_takes_one_batch_where_all_groups_teach(self, tmp_path) -> None:
        made = fitted(tmp_path, max_rounds=5, reward=Uneven())
        assert [len(lessons) for _, lessons, _ in made.rounds] == [1, 1, 1]
        assert all(lesson.old_logprobs is None for _, (lesson,), _ in made.rounds)


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_what_waited_is_compared_with_the_policy_that_sampled_it(tmp_path, num_iterations: int) -> None:
    made = fitted(tmp_path, max_rounds=20, max_steps=2 * num_iterations, num_iterations=num_iterations)
    (_, _, sampled_with) = next(each for each in made.rounds if each[1])
    carried, *fresh = made.rounds[-1][1]
    assert carried.old_logprobs is not None
    assert all((lesson.old_logprobs is None) == (num_iterations == 1) for lesson in fresh)
    reread, _ = sampled_with.logprobs(carried.batch, carried.completion_ids, carried.completion_mask)
    assert_close(carried.old_logprobs, reread, atol=1e-6, rtol=0)
    now, _ = made.rounds[-1][2].logprobs(carried.batch, carried.completion_ids, carried.completion_mask)
    assert (now - carried.old_logprobs).abs().max() > 1e-4


def test_rounds_of_a_step_draw_differently(tmp_path) -> None:
    seeds = [seed for _, seed in _drawn(tmp_path).calls]
    assert len(set(seeds)) == len(seeds) > 3


def _drawn(tmp_path: Path) -> ScriptedEngine:
    engine = ScriptedEngine(script)
    fitted(tmp_path, max_rounds=20, engine=engine)
    return engine


def test_a_coefficient_adapts_to_steps_and_not_to_rounds(tmp_path) -> None:
    seen: list[float] = []

    class Counting(GRPOLoss):
        def adapt(self, metrics: Any) -> None:
            seen.append(float(metrics["rlvr/ratio_mean"]))

    fitted(tmp_path, max_rounds=20, loss=Counting())
    assert len(seen) == 3


class SavingAlways(L.Callback):
    """A checkpoint after every round, between steps too."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{self.count}.ckpt")
        self.count += 1


def test_a_run_goes_on_from_any_round(tmp_path) -> None:
    """Bit-identical, with groups waiting from the step before and from rounds of an unfinished one."""
    whole, saving = stage(max_rounds=20), SavingAlways(tmp_path)
    trainer(tmp_path, max_steps=3, callbacks=[saving]).fit(whole, data(BATCH))
    due = [i for i, (_, lessons, _) in enumerate(whole.rounds) if lessons]
    assert due[1] - due[0] > 1
    for at in (due[0], due[0] + 1):  # after the first step, and within the second
        resumed = stage(max_rounds=20)
        again = trainer(tmp_path, max_steps=3)
        again.fit(resumed, data(BATCH), ckpt_path=tmp_path / f"{at}.ckpt", weights_only=True)
        assert len(resumed.rounds) == len(whole.rounds) - at - 1
        for (name, expected), (_, found) in zip(
            whole.policy.named_parameters(), resumed.policy.named_parameters(), strict=True
        ):
            assert found.equal(expected), name


def test_what_waits_stays_on_its_ranks() -> None:
    two: Any = SimpleNamespace(world_size=2, global_rank=0)
    pool = Pool(GRPOLoss(), max_length=4, max_rounds=2)
    nothing = {"waiting": [], "groups": 0, "rounds": 0}
    pool.load_state_dict([nothing], two)
    with pytest.raises(
        ValueError, match="groups that wait on 1 ranks to be learned from; resume on as many, not on 2"
    ):
        pool.load_state_dict([nothing | {"groups": 3}], two)


def test_rounds_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.max_rounds is 0; it must be at least 1"):
        stage(max_rounds=0)


class TestBlankGroups:
    def lesson(self, tmp_path: Path, rank: int, chosen: list[list[int]]) -> tuple[Rollout, Lesson]:
        made = fitted(tmp_path, max_steps=1, loss=GRPOLoss(aggregate="sequence"))
        rollout = made.rounds[0][0]
        return rollout, select(rollout, torch.tensor(chosen).bool(), rank, made.loss, max_length=32)

    def test_fill_up_a_rank_that_has_fewer(self, tmp_path) -> None:
        rollout, lesson = self.lesson(tmp_path, rank=1, chosen=[[1, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 1]])
        rows = rollout.completion_mask.view(6, 4, -1)[[2, 5]].flatten(0, 1)
        assert lesson.completion_mask.sum(1).tolist() == [*rows.sum(1).tolist(), 0, 0, 0, 0]
        assert groups(lesson)[:2] == [groups(rollout)[2], groups(rollout)[5]]
        assert (lesson.normalizer, lesson.step_tokens) == (8, rows.sum())

    @pytest.mark.parametrize(("rank", "counted"), [(0, True), (1, False)])
    def test_there_is_one_lesson_where_nothing_teaches(self, tmp_path, rank: int, counted: bool) -> None:
        _, lesson = self.lesson(tmp_path, rank, chosen=[[0] * 6, [0] * 6])
        assert len(lesson.rewards) == 4
        assert bool(lesson.completion_mask.any()) == counted

    def test_have_no_gradient_and_reach_every_parameter(self, tmp_path) -> None:
        _, lesson = self.lesson(tmp_path, rank=1, chosen=[[1] * 6, [0] * 6])
        policy = tiny_internvl(seed=1)
        logprobs, entropy = policy.logprobs(lesson.batch, lesson.completion_ids, lesson.completion_mask)
        loss = GRPOLoss(kl_coef=0.1, entropy_coef=0.1)
        compared = replace(lesson, ref_logprobs=torch.ones_like(logprobs))
        value = loss(logprobs, compared, entropy).loss
        value.backward()
        gradients = [parameter.grad for parameter in policy.parameters()]
        assert value == 0
        assert all(gradient is not None and (gradient == 0).all() for gradient in gradients)
