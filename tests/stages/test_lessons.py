"""What an RL step learns from, is told of, and shows: on one rank and on two."""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.testing import assert_close

from lit_msrl import losses
from lit_msrl.losses import GRPOLoss
from lit_msrl.prompts import JudgingPrompt
from lit_msrl.rewards import ConsistencyReward, RewardSum
from lit_msrl.rollout import Lesson, Rollout
from lit_msrl.stages import RLVRModule
from tests.conftest import tiny_internvl
from tests.fakes import ScriptedEngine
from tests.stages.test_rlvr import Stage, Uneven, data, module, trainer


def script(prompt: JudgingPrompt) -> list[tuple[str, float]]:
    """Four completions: some prompts' differ in reward, the others' do not; lengths differ."""
    right = f"<think>b</think><answer>{prompt.label}</answer>"
    differ = zlib.crc32(prompt.example.id.encode()) % 3 == 2
    texts = [right, "a <answer>", right, "a a a"] if differ else [right] * 4
    return [(text, -1.0) for text in texts]


class Watched(Stage):
    """Remembers what it sampled and what it learned from."""

    def lessons(self, rollout: Rollout) -> list[Lesson]:
        self.sampled, lessons = rollout, super().lessons(rollout)
        (self.learned,) = lessons
        return lessons


class NeedsAll(GRPOLoss):
    needs_all_groups = True  # type: ignore[assignment]


def scripted(tmp_path: Path, *, micro_batch_size: int = 2, **options: Any) -> Watched:
    """One SGD step on scripted completions, some groups of which agree."""
    stage = Watched(
        tiny_internvl(seed=1),
        {"language": 0.1, "projector": 0.1, "vision": 0.1},
        partial(torch.optim.SGD, lr=0.1),
        options.pop("loss", None) or GRPOLoss(),
        engine=ScriptedEngine(script),
        group_size=4,
        micro_batch_size=micro_batch_size,
        max_completion=32,
        style="compact",
        **options,
    )
    trainer(tmp_path).fit(stage, data(8))
    return stage


def assert_same_weights(one: RLVRModule, other: RLVRModule) -> None:
    for (name, expected), (_, found) in zip(
        one.policy.named_parameters(), other.policy.named_parameters(), strict=True
    ):
        assert_close(found, expected, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


class TestGroupsThatTeachNothing:
    @pytest.mark.parametrize("num_iterations", [1, 2])
    def test_are_skipped_without_a_trace(self, tmp_path, num_iterations: int) -> None:
        skipping = scripted(tmp_path, num_iterations=num_iterations)
        agreeing = (skipping.sampled.advantages.view(8, 4) == 0).all(1)
        assert 0 < agreeing.sum() < 8
        assert skipping.learned.step_tokens < skipping.sampled.step_tokens
        kept = skipping.sampled.completion_ids[~agreeing.repeat_interleave(4)]
        assert skipping.learned.completion_ids.equal(kept)
        taking_all = scripted(tmp_path, num_iterations=num_iterations, loss=NeedsAll())
        assert taking_all.learned.completion_ids.equal(taking_all.sampled.completion_ids)
        assert_same_weights(taking_all, skipping)

    @pytest.mark.parametrize("options", [{"kl_coef": 0.1}, {"entropy_coef": 0.1}])
    def test_are_kept_where_there_is_more_than_the_advantage(self, tmp_path, options) -> None:
        assert len(scripted(tmp_path, loss=GRPOLoss(**options)).learned.rewards) == 8 * 4

    def test_one_is_kept_where_all_agree(self, tmp_path) -> None:
        stage = scripted(tmp_path, reward=RewardSum(accuracy=0, format=0, task=0))
        assert len(stage.learned.rewards) == 4
        untouched = tiny_internvl(seed=1)
        for (name, found), (_, before) in zip(
            stage.policy.named_parameters(), untouched.named_parameters(), strict=True
        ):
            assert found.equal(before), name


def test_an_adaptive_kl_coefficient_survives_an_interruption(tmp_path) -> None:
    def run(steps: int, resume=None) -> tuple[Stage, L.Trainer]:
        loss = GRPOLoss(kl_coef=0.1, kl_target=0.01)
        stage = module(tiny_internvl(seed=1), reward=Uneven(), loss=loss)
        run = trainer(tmp_path, max_steps=steps)
        run.fit(stage, data(), ckpt_path=resume, weights_only=True if resume else None)
        return stage, run

    whole, _ = run(4)
    _, first = run(2)
    first.save_checkpoint(tmp_path / "two.ckpt")
    resumed, _ = run(4, tmp_path / "two.ckpt")
    assert isinstance(whole.loss, GRPOLoss)
    assert isinstance(resumed.loss, GRPOLoss)
    assert resumed.loss.kl_coef == whole.loss.kl_coef != pytest.approx(0.1)
    for (name, expected), (_, found) in zip(
        whole.policy.named_parameters(), resumed.policy.named_parameters(), strict=True
    ):
        assert found.equal(expected), name


def test_both_orders(tmp_path) -> None:
    stage = scripted(tmp_path, both_orders=True, reward=RewardSum(others=[ConsistencyReward(0.5)]))
    prompts = stage.sampled.prompts
    assert len(prompts) == 16
    for straight, swapped in zip(prompts[::2], prompts[1::2], strict=True):
        assert straight.example is swapped.example
        assert (straight.swapped, swapped.swapped) == (False, True)
        assert {straight.label, swapped.label} == {"A", "B"}
    # a right verdict earns the share of right ones in the other order: 1, or 2 of 4
    assert set(stage.sampled.reward_parts["consistency"].tolist()) == {0.0, 0.5, 1.0}


def test_the_last_tokens_cost(tmp_path) -> None:
    stage = scripted(tmp_path, overlong_buffer=28, reward=RewardSum())
    lengths = stage.sampled.completion_mask.sum(1)
    penalty = stage.sampled.reward_parts["overlong"]
    assert_close(penalty, -(lengths - 4).clamp(min=0) / 28)
    assert penalty.min() < 0
    parts = stage.sampled.reward_parts
    assert_close(stage.sampled.rewards, parts["accuracy"] + parts["format"] + 0.2 * parts["task"] + penalty)


def test_truncated_is_what_has_no_end(tmp_path) -> None:
    assert not scripted(tmp_path).sampled.truncated.any()
    stage = module(
        tiny_internvl(seed=1), reward=Uneven()
    )  # of random weights: hardly any ends within 8 tokens
    trainer(tmp_path).fit(stage, data())
    rollout = stage.last_rollout
    ended = [stage.policy.tokenizer.eos_token_id in row for row in rollout.completion_ids.tolist()]
    assert rollout.truncated.tolist() == [not end for end in ended]
    assert rollout.truncated.any()


class Log(TensorBoardLogger):
    """Remembers the numbers too."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.metrics = {**getattr(self, "metrics", {}), **metrics}
        super().log_metrics(metrics, step)


def test_what_is_logged(tmp_path) -> None:
    logger = Log(tmp_path)
    stage = module(tiny_internvl(seed=1), reward=Uneven(), loss=GRPOLoss(kl_coef=0.1))
    trainer(tmp_path, logger=logger, log_every_n_steps=1).fit(stage, data())
    found = logger.metrics
    tasks = ["text", "image_generation"]
    expected = {f"{part}/{task}" for part in ("accuracy", "format", "task", "total") for task in tasks}
    expected |= {f"reward/{part}" for part in ("accuracy", "format", "task", "total")}
    expected |= {"rollout/zero_variance_groups", "rollout/length", "rollout/truncated", "rollout/verdict_a"}
    expected |= {"rlvr/loss", "rlvr/kl", "rlvr/entropy", "rlvr/ratio_mean", "rlvr/gradient_norm"}
    expected |= {"rlvr/clip_fraction_low", "rlvr/clip_fraction_high"}
    expected |= {f"gradient_norm/{part}" for part in ("language", "projector", "vision")}
    expected |= {"sampler/kl", "sampler/weight", "sampler/effective_sample_size"}
    expected |= {"time/sample", "time/learn", "tokens_per_second/sample", "tokens_per_second/learn"}
    expected |= {"memory/peak_gib", "epoch"}
    assert set(found) == expected
    squares = [found[f"gradient_norm/{part}"] ** 2 for part in ("language", "projector", "vision")]
    assert sum(squares) ** 0.5 == pytest.approx(found["rlvr/gradient_norm"], rel=1e-4)
    # the engine draws from the policy itself
    assert found["sampler/kl"] == pytest.approx(0, abs=1e-6)
    assert found["sampler/effective_sample_size"] == pytest.approx(1, abs=1e-4)
    assert 0.1 < found["memory/peak_gib"] < 100
    rows = [p.task_type for p in stage.last_rollout.prompts for _ in range(4)]
    means = {
        task: [r for r, t in zip(stage.last_rollout.rewards, rows, strict=True) if t == task] for task in rows
    }
    for task, rewards in means.items():
        name = f"total/{task.replace(' ', '_')}"
        assert found[name] == pytest.approx(float(torch.stack(rewards).mean()))


class Logged(L.Callback):
    """Keeps what the first rank logged, in a file: the ranks are other processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            torch.save(metrics, self.path)


@pytest.mark.slow
def test_two_ranks_are_one(tmp_path) -> None:
    """The same weights and numbers, though ranks differ in tasks and in how many groups teach something.

    What exceeds a step waits on different ranks then, and the second step begins with it.
    """

    def run(ranks: int) -> tuple[Stage, dict[str, float]]:
        stage = Stage(
            tiny_internvl(seed=1),
            {"language": 0.1, "projector": 0.1, "vision": 0.1},
            partial(torch.optim.SGD, lr=0.1),
            losses.DAPOLoss(),
            engine=ScriptedEngine(script),
            group_size=4,
            micro_batch_size=1,
            max_completion=32,
            style="compact",
            num_iterations=2,
            max_rounds=3,
        )
        path = tmp_path / f"{ranks}.pt"
        strategy = "ddp_spawn" if ranks > 1 else "auto"
        run = trainer(tmp_path, strategy=strategy, devices=ranks, callbacks=[Logged(path)], max_steps=4)
        run.fit(stage, data(6 // ranks))
        return stage, torch.load(path)

    one, expected = run(1)
    assert expected["rollout/carried"] > 0
    two, found = run(2)
    assert_same_weights(one, two)
    for name in expected.keys() - {"memory/peak_gib"}:
        if not name.startswith(("time/", "tokens_per_second/")):
            assert found[name] == pytest.approx(expected[name], abs=1e-5), name
