"""The RL step: exact under any cut, silent without a signal, and able to learn."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.testing import assert_close

from data_modules.base import PreferenceDataModule
from data_modules.world import World
from lit_msrl.callbacks import TrainablePartsCheck
from lit_msrl.losses import GRPOLoss
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.rewards import RewardSum
from lit_msrl.rollout import Lesson
from lit_msrl.stages import RLVRModule, planning
from tests.conftest import text_prompt, tiny_internvl

NOTHING: dict[str, Any] = dict.fromkeys(("rewards", "advantages", "truncated", "normalizer"), torch.zeros(4))


class Stage(RLVRModule):
    name = "test"


def module(policy: GenerativeRMPolicy, *, reward: RewardSum | None = None, **options) -> Stage:
    defaults = {"group_size": 4, "micro_batch_size": 2, "max_completion": 8, "style": "compact"} | options
    loss = defaults.pop("loss", None) or GRPOLoss()
    optimizer = partial(torch.optim.SGD, lr=0.1)
    rates = defaults.pop("learning_rates", {"language": 0.1, "projector": 0.1, "vision": 0.1})
    return Stage(policy, rates, optimizer, loss, reward, **defaults)


def trainer(tmp_path, **options) -> L.Trainer:
    defaults = {
        "max_steps": 1,
        "max_epochs": -1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "limit_val_batches": 0,
    }
    return L.Trainer(default_root_dir=tmp_path, enable_model_summary=False, **(defaults | options))


def data(batch_size: int = 4, **options) -> PreferenceDataModule:
    return PreferenceDataModule(
        World(["text", "image generation"], size=64, **options), batch_size=batch_size
    )


class Uneven(RewardSum):
    """Rewards that differ within every group, made of the texts alone."""

    def __call__(self, judgements, prompts):
        scores = super().__call__(judgements, prompts)
        uneven = torch.arange(len(judgements), dtype=torch.float32).remainder(3)
        return scores._replace(total=uneven)


class Even(RewardSum):
    """All completions earn the same."""

    def __call__(self, judgements, prompts):
        scores = super().__call__(judgements, prompts)
        return scores._replace(total=torch.ones(len(judgements)))


def step(tmp_path, **options) -> dict[str, torch.Tensor]:
    """The movement of every parameter in one SGD step."""
    policy = tiny_internvl(seed=1)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    trainer(tmp_path).fit(module(policy, **options), data())
    return {name: p.detach() - before[name] for name, p in policy.named_parameters()}


@pytest.mark.parametrize(
    "options",
    [{"loss": GRPOLoss()}, {"loss": GRPOLoss(aggregate="sequence", kl_coef=0.1)}, {"num_iterations": 2}],
)
def test_micro_batches_change_nothing(tmp_path, options) -> None:
    whole = step(tmp_path, reward=Uneven(), micro_batch_size=4, **options)
    for size in (1, 3):
        parts = step(tmp_path, reward=Uneven(), micro_batch_size=size, **options)
        for name, moved in whole.items():
            assert_close(parts[name], moved, atol=1e-5, rtol=0)
    assert max(moved.abs().max() for moved in whole.values()) > 1e-3


def test_as_many_groups_as_fit_change_nothing(tmp_path, monkeypatch) -> None:
    whole = step(tmp_path, reward=Uneven(), micro_batch_size=4)
    sizes: list[int] = []
    held = planning.kept_bytes
    monkeypatch.setattr(planning, "kept_bytes", lambda *a: sizes.append(held(*a)) or sizes[-1])
    for fitting, expected in ((2, 2), (0, 1), (100, 4)):

        def free(device, fitting=fitting) -> float:
            moments = 3 * sum(p.nbytes for p in tiny_internvl(seed=1).parameters())
            groups = (fitting + 0.5) * planning.BACKWARD * sizes[-1]
            return (groups + moments + planning.SCORED * 320) / planning.SHARE

        monkeypatch.setattr(planning, "free_bytes", free)
        stage = module(tiny_internvl(seed=1), reward=Uneven(), micro_batch_size="auto")
        before = {name: p.detach().clone() for name, p in stage.policy.named_parameters()}
        trainer(tmp_path).fit(stage, data())
        assert stage.micro_batches.groups == expected
        for name, p in stage.policy.named_parameters():
            assert_close(p.detach() - before[name], whole[name], atol=1e-5, rtol=0)


def test_what_a_group_keeps_grows_with_its_completions() -> None:
    policy = tiny_internvl()
    batch = policy.encode([text_prompt()])

    def kept(length: int) -> int:
        ids = torch.full((4, length), 5)
        lesson = Lesson(batch=batch, completion_ids=ids, completion_mask=ids > 0, group_size=4, **NOTHING)
        return planning.kept_bytes(policy, lesson)

    short, longer, longest = kept(10), kept(20), kept(30)
    assert 0 < short < longer < longest
    assert longest - longer == pytest.approx(longer - short, rel=0.3)  # a packed mask is not linear
    assert all(p.grad is None for p in policy.parameters())


def test_sharing_is_checked_once_against_plain_rows(tmp_path, monkeypatch) -> None:
    checks: list[int] = []
    monkeypatch.setattr("lit_msrl.stages.rlvr.check_sharing", lambda *a: checks.append(len(a[2])))
    trainer(tmp_path, max_steps=2).fit(module(tiny_internvl(), reward=Uneven()), data())
    assert checks == [2]


def test_equal_rewards_move_nothing(tmp_path) -> None:
    assert all((moved == 0).all() for moved in step(tmp_path, reward=Even()).values())


def test_only_declared_parts_move_and_the_check_agrees(tmp_path) -> None:
    policy = tiny_internvl(seed=1)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    stage = module(policy, reward=Uneven(), learning_rates={"projector": 0.1})
    trainer(tmp_path, callbacks=[TrainablePartsCheck()]).fit(stage, data())
    moved = {name for name, p in policy.named_parameters() if not p.equal(before[name])}
    assert moved == {name for name, _ in policy.parts()["projector"]}


def test_the_check_finds_a_frozen_parameter_that_moves(tmp_path) -> None:
    policy = tiny_internvl(seed=1)
    stage = module(policy, reward=Uneven(), learning_rates={"language": 0.1})
    check = TrainablePartsCheck()
    run = trainer(tmp_path, callbacks=[check, Meddler()])
    with pytest.raises(
        RuntimeError, match=r"frozen parameters moved, e\.g\. model\.model\.multi_modal_projector"
    ):
        run.fit(stage, data())


class Meddler(L.Callback):
    """Moves what must stay."""

    def on_train_batch_start(self, trainer, pl_module: Any, batch, batch_idx) -> None:
        with torch.no_grad():
            pl_module.policy.model.model.multi_modal_projector.linear_1.bias.add_(1.0)


def test_two_and_two_steps_are_four(tmp_path) -> None:
    """Interrupted and resumed, a run ends bit-identical to one that was not."""

    def run(steps: int, resume=None) -> tuple[Stage, L.Trainer]:
        stage = module(tiny_internvl(seed=1), reward=Uneven(), loss=GRPOLoss(kl_coef=0.1))
        run = trainer(tmp_path, max_steps=steps)
        run.fit(stage, data(), ckpt_path=resume, weights_only=True if resume else None)
        return stage, run

    whole, _ = run(4)
    _, first = run(2)
    first.save_checkpoint(tmp_path / "two.ckpt")
    resumed, _ = run(4, tmp_path / "two.ckpt")
    for (name, expected), (_, found) in zip(
        whole.policy.named_parameters(), resumed.policy.named_parameters(), strict=True
    ):
        assert found.equal(expected), name


def test_a_checkpoint_of_another_stage_is_refused(tmp_path) -> None:
    run = trainer(tmp_path)
    run.fit(module(tiny_internvl(), reward=Uneven()), data())
    run.save_checkpoint(tmp_path / "x.ckpt")
    other = module(tiny_internvl(), reward=Uneven())
    other.name = "other"
    with pytest.raises(ValueError, match="checkpoint is of stage 'test', this is 'other'"):
        trainer(tmp_path, max_steps=2).fit(other, data(), ckpt_path=tmp_path / "x.ckpt")


def test_a_tie_is_an_error_not_a_zero(tmp_path) -> None:
    from dataclasses import replace

    class Ties(World):
        def example(self, index):
            return replace(super().example(index), winner="tie")

    with pytest.raises(ValueError, match="has no label"):
        trainer(tmp_path).fit(
            module(tiny_internvl()), PreferenceDataModule(Ties(["text"], size=8), batch_size=4)
        )


class Wordy(RewardSum):
    """Pays for one letter, however often it is written."""

    def __call__(self, judgements, prompts):
        scores = super().__call__(judgements, prompts)
        return scores._replace(total=torch.tensor([float(text.count("e")) for text in self.texts]))

    def read(self, texts, prompts):
        self.texts = texts
        return super().read(texts, prompts)


@pytest.mark.slow
def test_rl_learns(tmp_path) -> None:
    """A random model learns to write the one letter that is paid for."""
    policy, reward = tiny_internvl(seed=1), Wordy()
    stage = Stage(
        policy,
        {"language": 3e-3},
        torch.optim.AdamW,
        GRPOLoss(),
        reward,
        group_size=8,
        max_completion=8,
        style="compact",
    )
    totals: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module: Any, outputs, batch, batch_idx) -> None:
            totals.append(float(pl_module.last_rollout.rewards.mean()))

    trainer(tmp_path, max_steps=40, callbacks=[Watch()]).fit(stage, data())
    assert sum(totals[-5:]) / 5 > 5 * sum(totals[:5]) / 5


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_what_is_counted_and_earned_stays_in_32_bits(precision, tmp_path):
    """Lightning's ``bf16-true`` makes bfloat16 the default type, in which 1.2 and 257 do not exist."""
    stage = module(tiny_internvl(), reward=Uneven(), loss=GRPOLoss(aggregate="sequence"), max_completion=3)
    trainer(tmp_path, precision=precision).fit(stage, data())
    rollout = stage.last_rollout
    exact = [
        rollout.rewards,
        rollout.advantages,
        rollout.sampler_logprobs,
        rollout.normalizer,
        rollout.tokens,
    ]
    assert {tensor.dtype for tensor in exact if tensor is not None} == {torch.float32}
    assert rollout.normalizer == len(rollout.rewards)


def test_precision_that_scales_gradients_is_refused(tmp_path) -> None:
    scaling = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match="use bf16-mixed"):
        trainer(tmp_path, plugins=[scaling]).fit(module(tiny_internvl()), data())
