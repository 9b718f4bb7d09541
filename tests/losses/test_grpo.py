"""GRPO against numbers worked out by hand, and what must hold of it whatever the numbers."""

import math
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.testing import assert_close

from lit_msrl import functional as F
from lit_msrl.losses import GRPOLoss, LossOutput, RLVRLoss
from lit_msrl.rollout import Lesson
from tests.losses.made import make


class TestByHand:
    """One group of two, three tokens, the last of the second is padding. Rewards 2 and 0: A = 1, -1."""

    mask = torch.tensor([[True, True, True], [True, True, False]])
    logprobs = torch.tensor(
        [[0.5, 1.0, 1.5], [0.5, 1.0, 1.5]]
    ).log()  # old_logprobs are 0, so these are the ratios
    rewards = torch.tensor([2.0, 0.0])

    def run(self, loss: GRPOLoss, **changes: Any) -> LossOutput:
        changes = {"old_logprobs": torch.zeros(2, 3)} | changes
        return loss(self.logprobs, make(loss, self.rewards, self.mask, **changes))

    @pytest.mark.parametrize(
        ("aggregate", "expected"),
        [
            # per token, clipped to 0.8 .. 1.28:  -(0.5, 1, 1.28)  and  (0.8, 1)
            ("token", -0.196),  # (-2.78 + 1.8) / 5
            ("sequence", -0.0133333),  # (-2.78 / 3 + 1.8 / 2) / 2
            ("constant", -0.1225),  # (-2.78 + 1.8) / (2 * 4)
        ],
    )
    def test_loss(self, aggregate: F.Aggregation, expected: float) -> None:
        loss, _ = self.run(GRPOLoss(0.2, 0.28, aggregate=aggregate))
        assert_close(loss, torch.tensor(expected), atol=1e-6, rtol=1e-5)

    def test_one_clip_range_serves_both_sides(self) -> None:
        loss, _ = self.run(GRPOLoss(0.2))  # -(0.5, 1, 1.2) and (0.8, 1): (-2.7 + 1.8) / 5
        assert_close(loss, torch.tensor(-0.18))

    def test_metrics(self) -> None:
        # of five tokens 1.5 of the good completion and 0.5 of the bad one are clipped
        # mean: (0.5 + 1 + 1.5 + 0.5 + 1) / 5
        _, metrics = self.run(GRPOLoss(0.2, 0.28))
        assert {key: value.item() for key, value in metrics.items()} == pytest.approx(
            {"rlvr/clip_fraction_low": 0.2, "rlvr/clip_fraction_high": 0.2, "rlvr/ratio_mean": 0.9}
        )

    def test_clipped_is_only_what_went_too_far_the_right_way(self) -> None:
        # A = 1: 1.5 is clipped, 0.5 is not; A = -1: 0.5 is clipped. One of five tokens each.
        loss, ratio = GRPOLoss(0.2, 0.28), torch.tensor([[0.5, 0.5, 1.5], [0.5, 1.0, 1.5]])
        rollout = make(loss, self.rewards, self.mask, old_logprobs=torch.zeros(2, 3))
        metrics = loss(ratio.log(), rollout).metrics
        assert metrics["rlvr/clip_fraction_low"].item() == pytest.approx(0.2)
        assert metrics["rlvr/clip_fraction_high"].item() == pytest.approx(0.2)

    def test_kl(self) -> None:
        # the reference gives each token half the probability: k3 = 1/2 - log 1/2 - 1 = 0.193147
        loss, metrics = self.run(GRPOLoss(0.2, 0.28, kl_coef=10.0), ref_logprobs=self.logprobs - math.log(2))
        assert_close(metrics["rlvr/kl"], torch.tensor(0.193147), atol=1e-6, rtol=0)
        assert_close(loss, torch.tensor(-0.196 + 1.93147), atol=1e-5, rtol=0)

    def test_no_kl_from_itself(self) -> None:
        loss, metrics = self.run(GRPOLoss(0.2, 0.28, kl_coef=10.0), ref_logprobs=self.logprobs)
        assert_close((loss, metrics["rlvr/kl"]), (torch.tensor(-0.196), torch.tensor(0.0)))

    def test_scaled_rewards(self) -> None:
        # std of (2, 0) is sqrt 2: A = +-0.70706 (with eps), and the loss is linear in A
        loss, _ = self.run(GRPOLoss(0.2, 0.28, scale="group"))
        assert_close(loss, torch.tensor(-0.196 / (math.sqrt(2) + 1e-4)))

    def test_a_missing_reference_is_an_error(self) -> None:
        assert GRPOLoss(kl_coef=0.1).needs_reference
        assert not GRPOLoss().needs_reference
        with pytest.raises(ValueError, match="ref_logprobs"):
            self.run(GRPOLoss(kl_coef=0.1))


class TestInvariants:
    """A policy that is a table of logits: three groups of two completions, of up to 5 tokens out of 7."""

    def setup_method(self) -> None:
        torch.manual_seed(0)
        self.logits = torch.randn(6, 5, 7, dtype=torch.float64, requires_grad=True)
        self.tokens = torch.randint(7, (6, 5, 1))
        self.mask = torch.arange(5) < torch.tensor([1, 2, 4, 1, 3, 5])[:, None]
        self.rewards = torch.rand(6, dtype=torch.float64)

    def logprobs(self, rows: slice = slice(None), width: int = 5) -> Tensor:
        return self.logits.log_softmax(-1).gather(2, self.tokens).squeeze(2)[rows, :width]

    def gradient(self, value: Tensor) -> Tensor:
        return torch.autograd.grad(value, self.logits)[0]

    def test_on_policy_is_reinforce_with_the_groups_mean_as_baseline(self) -> None:
        loss = GRPOLoss()
        ours = self.gradient(loss(self.logprobs(), make(loss, self.rewards, self.mask)).loss)
        baseline = self.rewards.view(3, 2).mean(1).repeat_interleave(2)
        credit = (self.rewards - baseline)[:, None] * self.mask
        assert_close(ours, self.gradient(-(credit * self.logprobs()).sum() / self.mask.sum()))

    def test_on_policy_ratio_is_one(self) -> None:
        loss = GRPOLoss()
        implicit = loss(self.logprobs(), make(loss, self.rewards, self.mask))
        rollout = make(loss, self.rewards, self.mask, old_logprobs=self.logprobs().detach())
        explicit = loss(self.logprobs(), rollout)
        assert implicit.metrics["rlvr/ratio_mean"].item() == pytest.approx(1)
        assert implicit.metrics["rlvr/clip_fraction_low"] + implicit.metrics["rlvr/clip_fraction_high"] == 0
        assert_close(self.gradient(implicit.loss), self.gradient(explicit.loss))

    @pytest.mark.parametrize("scale", ["group", "batch", "none"])
    def test_equal_rewards_teach_nothing_and_backward_runs(self, scale: F.Scale) -> None:
        loss = GRPOLoss(scale=scale)
        output = loss(self.logprobs(), make(loss, torch.ones(6, dtype=torch.float64), self.mask))
        assert_close(self.gradient(output.loss), torch.zeros_like(self.logits))

    @pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
    @pytest.mark.parametrize("groups", [1, 2])
    def test_the_cut_into_micro_batches_changes_nothing(self, aggregate: F.Aggregation, groups: int) -> None:
        loss = GRPOLoss(0.1, 0.2, kl_coef=0.5, aggregate=aggregate)
        noise = 0.3 * torch.randn(2, 6, 5, dtype=torch.float64)
        old, ref = self.logprobs().detach() + noise
        whole = make(loss, self.rewards, self.mask, old_logprobs=old, ref_logprobs=ref)
        expected = loss(self.logprobs(), whole)
        assert expected.metrics["rlvr/clip_fraction_low"] + expected.metrics["rlvr/clip_fraction_high"] > 0

        parts, start = [], 0
        for part in whole.micro_batches(groups):
            rows = slice(start, start + len(part.rewards))
            parts.append(loss(self.logprobs(rows, part.completion_ids.shape[1]), part))
            start = rows.stop
        total = torch.stack([part.loss for part in parts]).sum()
        assert_close(total, expected.loss, atol=1e-6, rtol=0)
        assert_close(self.gradient(total), self.gradient(expected.loss), atol=1e-6, rtol=0)
        for key, value in expected.metrics.items():
            assert_close(torch.stack([part.metrics[key] for part in parts]).sum(), value, atol=1e-6, rtol=0)

    def test_the_order_of_groups_changes_nothing(self) -> None:
        loss, order = GRPOLoss(aggregate="sequence"), torch.tensor([4, 5, 0, 1, 2, 3])
        straight = loss(self.logprobs(), make(loss, self.rewards, self.mask)).loss
        turned = loss(self.logprobs()[order], make(loss, self.rewards[order], self.mask[order])).loss
        assert_close(self.gradient(straight), self.gradient(turned))

    def test_metrics_carry_no_graph(self) -> None:
        loss = GRPOLoss(kl_coef=0.1)
        rollout = make(loss, self.rewards, self.mask, ref_logprobs=self.logprobs().detach())
        assert not any(value.requires_grad for value in loss(self.logprobs(), rollout).metrics.values())


class Reinforce(RLVRLoss):
    """The least a new loss has to say."""

    def __call__(self, logprobs: Tensor, lesson: Lesson, entropy: Tensor | None = None) -> LossOutput:
        per_token = -lesson.advantages[:, None] * logprobs
        loss = F.aggregate(per_token, lesson.completion_mask, "token", normalizer=lesson.normalizer)
        return LossOutput(loss, {})


def test_a_new_loss_is_one_method() -> None:
    loss, rewards, mask = Reinforce(), torch.tensor([1.0, 0.0]), torch.ones(2, 1, dtype=torch.bool)
    # A = 0.5, -0.5: (-0.5 * -1 + 0.5 * -3) / 2
    assert loss(torch.tensor([[-1.0], [-3.0]]), make(loss, rewards, mask)).loss.item() == -0.5
    assert not loss.needs_reference


class Module(LightningModule):
    def __init__(self, loss: RLVRLoss | None = None) -> None:
        super().__init__()
        if loss is not None:
            self.loss = loss


class TestSetup:
    def test_the_modules_own_loss_is_welcome(self) -> None:
        loss = GRPOLoss()
        loss.setup(Trainer.__new__(Trainer), Module(loss), "fit")

    @pytest.mark.parametrize("module", [Module(), Module(GRPOLoss())])
    def test_a_loss_nobody_calls_is_refused(self, module: Module) -> None:
        with pytest.raises(ValueError, match="configure GRPOLoss at `model.loss`"):
            GRPOLoss().setup(Trainer.__new__(Trainer), module, "fit")


def test_command_line() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=RLVRLoss, default={"class_path": "lit_msrl.losses.GRPOLoss"})
    arguments = ["--loss.clip_range=0.1", "--loss.aggregate=constant", "--loss.scale=group"]
    loss = parser.instantiate(parser.parse_args(arguments)).loss
    found = (loss.clip_range, loss.clip_range_high, loss.aggregate, loss.scale)
    assert found == (0.1, None, "constant", "group")
    assert parser.instantiate(parser.parse_args(["--loss=GRPOLoss", "--loss.kl_coef=1"])).loss.needs_reference
