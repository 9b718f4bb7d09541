"""Every loss against numbers worked out by hand, and what must hold of all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.testing import assert_close

from lit_msrl import functional as F
from lit_msrl.losses import (
    CISPOLoss,
    DAPOLoss,
    DrGRPOLoss,
    GRPOLoss,
    GSPOLoss,
    LossOutput,
    PolicyGradientLoss,
    ReinforcePlusPlusLoss,
    RLOOLoss,
    RLVRLoss,
    SAPOLoss,
)
from tests.losses.made import make

LOSSES: list[type[PolicyGradientLoss]] = [
    GRPOLoss,
    DrGRPOLoss,
    DAPOLoss,
    GSPOLoss,
    CISPOLoss,
    SAPOLoss,
    RLOOLoss,
    ReinforcePlusPlusLoss,
]
SQRT2 = math.sqrt(2) + 1e-4  # the deviation of rewards 2 and 0, and what keeps it from 0


class Case:
    """One group of two, three tokens, the last of the second is padding. Rewards 2, 0: A = 1, -1."""

    mask = torch.tensor([[True, True, True], [True, True, False]])
    logprobs = torch.tensor([[0.5, 1.0, 1.5], [0.5, 1.0, 1.5]]).log()  # old ones are 0: these are the ratios
    rewards = torch.tensor([2.0, 0.0])

    def run(self, loss: RLVRLoss, entropy: Tensor | None = None, **changes: Any) -> LossOutput:
        changes = {"old_logprobs": torch.zeros(2, 3)} | changes
        return loss(self.logprobs, make(loss, self.rewards, self.mask, **changes), entropy)


class TestByHand(Case):
    @pytest.mark.parametrize(
        ("loss", "expected"),
        [
            # clipped to 0.8 .. 1.2: -(0.5 + 1 + 1.2) and 0.8 + 1, over 2 completions of up to 4 tokens
            pytest.param(DrGRPOLoss(), (-2.7 + 1.8) / 8, id="DrGRPO"),
            # clipped to 0.8 .. 1.28, A scaled, over 5 tokens
            pytest.param(DAPOLoss(), (-2.78 + 1.8) / 5 / SQRT2, id="DAPO"),
            # (0.5 * 1 * 1.5) ** (1/3) = 0.908560, (0.5 * 1) ** (1/2) = 0.707107, clipped to 0.8 .. 1.28:
            # A = 1: min(0.908560, 0.908560); A = -1: min(-0.707107, -0.8)
            pytest.param(
                GSPOLoss(clip_range=0.2, clip_range_high=0.28, scale="none"),
                (-0.9085603 + 0.8) / 2,
                id="GSPO",
            ),
            # the paper's narrow range, 0.9997 .. 1.0004: min(0.908560, 0.9997); min(-0.707107, -0.9997)
            pytest.param(GSPOLoss(), (-0.9085603 + 0.9997) / 2 / SQRT2, id="GSPO as published"),
            # weights 0.5, 1, 1.2 on log p = log 0.5, 0, log 1.5, over 5 tokens:
            # -(-0.3465736 + 0 + 0.4865581) and +(-0.3465736 + 0)
            pytest.param(
                CISPOLoss(clip_range_high=0.2, scale="none"), (-0.1399845 - 0.3465736) / 5, id="CISPO"
            ),
            # -4 (s(-0.5) + s(0) + s(0.5)) = -6, over 3; +2 (s(-1) + s(0)) = 2 * 0.7689414, over 2
            pytest.param(
                SAPOLoss(tau_positive=1.0, tau_negative=2.0, scale="none"), (-2.0 + 0.7689414) / 2, id="SAPO"
            ),
            # A = 2 - 0, 0 - 2; ratios 0.75 and 0.5 clipped to 0.8 .. 1.2: min(1.5, 1.6), min(-1, -1.6)
            pytest.param(RLOOLoss(), (-1.5 + 1.6) / 2, id="RLOO"),
            # one group: mean 1, deviation sqrt 2; clipped to 0.8 .. 1.2, over 5 tokens
            pytest.param(ReinforcePlusPlusLoss(), (-2.7 + 1.8) / 5 / SQRT2, id="REINFORCE++"),
        ],
    )
    def test_loss(self, loss: PolicyGradientLoss, expected: float) -> None:
        assert_close(self.run(loss).loss, torch.tensor(expected), atol=1e-6, rtol=1e-5)

    def test_cispo_keeps_the_gradient_of_what_it_clips(self) -> None:
        loss, logprobs = CISPOLoss(clip_range_high=0.2, scale="none"), self.logprobs.clone().requires_grad_()
        rollout = make(loss, self.rewards, self.mask, old_logprobs=torch.zeros(2, 3))
        loss(logprobs, rollout).loss.backward()
        # -weight * A / 5
        assert_close(logprobs.grad, torch.tensor([[-0.1, -0.2, -0.24], [0.1, 0.2, 0.0]]))

    def test_sapo_has_the_policy_gradient_at_ratio_1(self) -> None:
        loss, logprobs = SAPOLoss(scale="none"), torch.zeros(2, 3, requires_grad=True)
        loss(logprobs, make(loss, self.rewards, self.mask)).loss.backward()
        # -A / length / 2
        assert_close(logprobs.grad, torch.tensor([[-1 / 6] * 3, [1 / 4, 1 / 4, 0.0]]))

    def test_rloo_gives_every_token_the_credit_of_its_completion(self) -> None:
        loss, logprobs = RLOOLoss(), torch.zeros(2, 3, requires_grad=True)
        loss(logprobs, make(loss, self.rewards, self.mask)).loss.backward()
        # -A / 2 completions, however long they are
        assert_close(logprobs.grad, torch.tensor([[-1.0] * 3, [1.0, 1.0, 0.0]]))

    def test_clip_fractions(self) -> None:
        # GSPO: of five tokens the two of the second completion; CISPO: 1.5 twice, of which one is padding
        gspo = self.run(GSPOLoss(clip_range=0.2, clip_range_high=0.28)).metrics
        assert (gspo["rlvr/clip_fraction_low"].item(), gspo["rlvr/clip_fraction_high"].item()) == (
            pytest.approx(0.4),
            0,
        )
        assert self.run(CISPOLoss(clip_range_high=0.2)).metrics[
            "rlvr/clip_fraction_high"
        ].item() == pytest.approx(0.2)


class TestAdvantages:
    """Two groups of two: means 0.5 and 1."""

    rewards = torch.tensor([1.0, 0.0, 1.0, 1.0])

    @pytest.mark.parametrize(
        ("loss", "expected"),
        [
            (GRPOLoss(), [0.5, -0.5, 0.0, 0.0]),
            # deviations sqrt 0.5 and 0
            (GRPOLoss(scale="group"), [0.70701, -0.70701, 0.0, 0.0]),
            # deviation of 1, 0, 1, 1: sqrt(3 * 1/16 + 9/16) / sqrt 3 = 0.5; 0.5 / 0.5001
            (GRPOLoss(scale="batch"), [0.99980, -0.99980, 0.0, 0.0]),
            (RLOOLoss(), [1.0, -1.0, 0.0, 0.0]),
            # mean 0.75, deviation 0.5
            (ReinforcePlusPlusLoss(), [0.49990, -1.49970, 0.49990, 0.49990]),
            # deviation of 0.5, -0.5, 0, 0: sqrt(0.5 / 3) = 0.408248
            (ReinforcePlusPlusLoss(group_baseline=True), [1.22445, -1.22445, 0.0, 0.0]),
        ],
    )
    def test_values(self, loss: PolicyGradientLoss, expected: list[float]) -> None:
        assert_close(loss.advantages(self.rewards, 2), torch.tensor(expected), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("kind", LOSSES)
    def test_equal_rewards_give_exactly_nothing(self, kind: type[PolicyGradientLoss]) -> None:
        rewards = torch.full((6,), 1.3)  # whose mean is not 1.3 in fp32
        assert rewards.mean() != rewards[0]
        assert (kind().advantages(rewards, 6) == 0).all()

    def test_reinforce_plus_plus_is_scaled_by_the_batch(self) -> None:
        with pytest.raises(ValueError, match="scale=group is another loss"):
            ReinforcePlusPlusLoss(scale="group")


class TestOptions(Case):
    base = (-2.7 + 1.8) / 5  # GRPO without options: -(0.5 + 1 + 1.2) and 0.8 + 1, over 5 tokens

    @pytest.mark.parametrize(
        ("kl", "expected"),
        [("k1", math.log(2)), ("k2", math.log(2) ** 2 / 2), ("k3", 0.5 + math.log(2) - 1)],
    )
    def test_kl(self, kl: F.KL, expected: float) -> None:
        # the reference gives each token half the probability
        half = self.logprobs - math.log(2)
        loss, metrics = self.run(GRPOLoss(kl_coef=10.0, kl=kl), ref_logprobs=half)
        assert_close(metrics["rlvr/kl"], torch.tensor(expected))
        assert_close(loss, torch.tensor(self.base + 10 * expected))

    def test_entropy_is_rewarded(self) -> None:
        entropy = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 99.0]], requires_grad=True)
        loss = self.run(GRPOLoss(entropy_coef=0.1), entropy).loss
        assert_close(loss, torch.tensor(self.base - 0.1 * 3.0))  # (1 + 2 + 3 + 4 + 5) / 5
        loss.backward()
        assert_close(entropy.grad, -0.02 * self.mask)

    @pytest.mark.parametrize(
        ("aggregate", "expected"), [("token", -0.9), ("sequence", -0.45), ("constant", -0.3375)]
    )
    def test_truncated_completions_can_be_left_out(self, aggregate: F.Aggregation, expected: float) -> None:
        # what is left of the first: -(0.5 + 1 + 1.2) / 3 = -0.9; over 2 completions; -2.7 / (2 * 4)
        truncated = torch.tensor([False, True])
        loss = GRPOLoss(mask_truncated=True, aggregate=aggregate)
        assert_close(self.run(loss, truncated=truncated).loss, torch.tensor(expected))
        loss = GRPOLoss(aggregate="token")
        assert_close(self.run(loss, truncated=truncated).loss, torch.tensor(self.base))

    @pytest.mark.parametrize(
        ("correction", "expected"),
        [
            # old over sampler is 3, 1, 1/2 and 1, 1/2; products 1.5 and 0.5; cap 2
            (None, -2.7 + 1.8),
            ("token_truncate", -(2 * 0.5 + 1 * 1 + 0.5 * 1.2) + (1 * 0.8 + 0.5 * 1)),
            ("token_mask", -(0 * 0.5 + 1 * 1 + 0.5 * 1.2) + (1 * 0.8 + 0.5 * 1)),
            ("sequence_truncate", -1.5 * 2.7 + 0.5 * 1.8),
            ("sequence_mask", -1.5 * 2.7 + 0.5 * 1.8),
        ],
    )
    def test_correction(self, correction: F.Correction | None, expected: float) -> None:
        sampler = -torch.tensor([[3.0, 1.0, 0.5], [1.0, 0.5, 7.0]]).log()
        loss, metrics = self.run(GRPOLoss(correction=correction), sampler_logprobs=sampler)
        assert_close(loss, torch.tensor(expected / 5))
        # always told: k3 = w - 1 - log w and the moments of w, over 5 tokens
        weights = torch.tensor([3.0, 1.0, 0.5, 1.0, 0.5])
        assert_close(metrics["sampler/kl"], (weights - 1 - weights.log()).mean())
        assert_close(metrics["sampler/weight"], torch.tensor(1.2))
        assert_close(metrics["sampler/weight_square"], torch.tensor(2.3))  # (9 + 1 + 1/4 + 1 + 1/4) / 5

    def test_a_sequence_beyond_the_cap(self) -> None:
        sampler = -torch.tensor([[3.0, 1.0, 1.0], [1.0, 1.0, 7.0]]).log()
        cut = self.run(GRPOLoss(correction="sequence_truncate"), sampler_logprobs=sampler).loss
        assert_close(cut, torch.tensor((-2 * 2.7 + 1.8) / 5))
        left_out = self.run(GRPOLoss(correction="sequence_mask"), sampler_logprobs=sampler).loss
        assert_close(left_out, torch.tensor(1.8 / 5))

    @pytest.mark.parametrize(
        ("options", "missing"),
        [
            ({"kl_coef": 0.1}, "ref_logprobs"),
            ({"entropy_coef": 0.1}, "entropy"),
            ({"correction": "token_mask"}, "sampler_logprobs"),
        ],
    )
    def test_what_an_option_needs_must_be_there(self, options: dict[str, Any], missing: str) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(options))} is set, so the loss needs {missing}"):
            self.run(GRPOLoss(**options))

    def test_groups_without_an_advantage_are_needed_by_terms_without_one(self) -> None:
        assert not GRPOLoss().needs_all_groups
        assert GRPOLoss(kl_coef=0.1).needs_all_groups
        assert GRPOLoss(entropy_coef=0.1).needs_all_groups


class TestAdaptiveKL:
    def test_the_coefficient_follows_the_kl(self) -> None:
        loss = GRPOLoss(kl_coef=1.0, kl_target=0.1)
        loss.adapt({"rlvr/kl": torch.tensor(0.11)})  # 10 % above: 1 + 0.1 * 0.1
        assert loss.kl_coef == pytest.approx(1.01)
        loss.adapt({"rlvr/kl": torch.tensor(5.0)})  # far above: 2 % at most
        assert loss.kl_coef == pytest.approx(1.01 * 1.02)
        loss.adapt({"rlvr/kl": torch.tensor(0.0)})
        assert loss.kl_coef == pytest.approx(1.01 * 1.02 * 0.98)

    def test_state(self) -> None:
        loss, resumed = GRPOLoss(kl_coef=1.0, kl_target=0.1), GRPOLoss(kl_coef=1.0, kl_target=0.1)
        loss.adapt({"rlvr/kl": torch.tensor(5.0)})
        resumed.load_state_dict(loss.state_dict())
        assert resumed.kl_coef == loss.kl_coef == pytest.approx(1.02)

    def test_a_constant_coefficient_is_the_configurations(self) -> None:
        loss = GRPOLoss(kl_coef=0.5)
        assert loss.state_dict() == {}
        loss.load_state_dict({"kl_coef": 1.0})
        assert loss.kl_coef == 0.5

    def test_nothing_to_adapt(self) -> None:
        with pytest.raises(ValueError, match="kl_coef, which is 0"):
            GRPOLoss(kl_target=0.1)


@pytest.mark.parametrize("kind", LOSSES)
class TestInvariants:
    """A policy that is a table of logits, in fp32: three groups of two, of up to 5 tokens out of 7."""

    def setup_method(self) -> None:
        torch.manual_seed(0)
        self.logits = torch.randn(6, 5, 7, requires_grad=True)
        self.tokens = torch.randint(7, (6, 5, 1))
        self.mask = torch.arange(5) < torch.tensor([1, 2, 4, 1, 3, 5])[:, None]
        self.rewards = torch.rand(6)
        noise = 0.3 * torch.randn(3, 6, 5)
        old, ref, sampler = self.score()[0].detach() + noise
        self.others: dict[str, Any] = {"old_logprobs": old, "ref_logprobs": ref, "sampler_logprobs": sampler}
        self.others["truncated"] = torch.tensor([False, False, True, False, False, False])

    def score(self, rows: slice = slice(None), width: int = 5) -> tuple[Tensor, Tensor]:
        logprobs = self.logits.log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(2, self.tokens).squeeze(2)[rows, :width], entropy[rows, :width]

    def gradient(self, value: Tensor) -> Tensor:
        return torch.autograd.grad(value, self.logits)[0]

    @pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
    @pytest.mark.parametrize("groups", [1, 2])
    def test_the_cut_into_micro_batches_changes_nothing(
        self, kind: Callable[..., PolicyGradientLoss], aggregate: F.Aggregation, groups: int
    ) -> None:
        loss = kind(
            aggregate=aggregate,
            kl_coef=0.5,
            entropy_coef=0.1,
            mask_truncated=True,
            correction="token_truncate",
            correction_cap=1.2,
        )
        whole = make(loss, self.rewards, self.mask, **self.others)
        logprobs, entropy = self.score()
        expected = loss(logprobs, whole, entropy)
        parts, start = [], 0
        for part in whole.micro_batches(groups):
            rows = slice(start, start + len(part.rewards))
            logprobs, entropy = self.score(rows, part.completion_ids.shape[1])
            parts.append(loss(logprobs, part, entropy))
            start = rows.stop
        total = torch.stack([part.loss for part in parts]).sum()
        assert_close(total, expected.loss, atol=1e-5, rtol=0)
        assert_close(self.gradient(total), self.gradient(expected.loss), atol=1e-5, rtol=0)
        for key, value in expected.metrics.items():
            assert_close(torch.stack([part.metrics[key] for part in parts]).sum(), value, atol=1e-5, rtol=0)

    def test_on_policy_is_a_ratio_of_one(self, kind: Callable[..., PolicyGradientLoss]) -> None:
        loss, (logprobs, _) = kind(), self.score()
        implicit = loss(logprobs, make(loss, self.rewards, self.mask))
        explicit = loss(logprobs, make(loss, self.rewards, self.mask, old_logprobs=logprobs.detach()))
        assert implicit.metrics["rlvr/ratio_mean"].item() == pytest.approx(1)
        assert_close(implicit, explicit)

    def test_on_policy_is_reinforce(self, kind: Callable[..., PolicyGradientLoss]) -> None:
        loss, (logprobs, _) = kind(aggregate="token"), self.score()
        rollout = make(loss, self.rewards, self.mask)
        ours = self.gradient(loss(logprobs, rollout).loss)
        per_token = -rollout.advantages[:, None] * self.score()[0] * self.mask
        if isinstance(
            loss, RLOOLoss
        ):  # a completion is one action: its tokens' sum, as often as it has tokens
            per_token = per_token * self.mask.sum(1, keepdim=True)
        assert_close(ours, self.gradient(per_token.sum() / self.mask.sum()), atol=1e-6, rtol=1e-5)

    def test_no_advantage_no_gradient(self, kind: Callable[..., PolicyGradientLoss]) -> None:
        loss, (logprobs, _) = kind(), self.score()
        rollout = make(loss, torch.full((6,), 2.2), self.mask, old_logprobs=self.others["old_logprobs"])
        assert (self.gradient(loss(logprobs, rollout).loss) == 0).all()

    def test_metrics_carry_no_graph(self, kind: Callable[..., PolicyGradientLoss]) -> None:
        loss, (logprobs, entropy) = kind(kl_coef=0.1), self.score()
        output = loss(logprobs, make(loss, self.rewards, self.mask, **self.others), entropy)
        assert not any(value.requires_grad for value in output.metrics.values())

    def test_by_its_short_name(self, kind: type[PolicyGradientLoss]) -> None:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--loss", type=RLVRLoss)
        loss = parser.instantiate(
            parser.parse_args([f"--loss={kind.__name__}", "--loss.kl_coef=0.5", "--loss.kl_target=0.1"])
        ).loss
        assert type(loss) is kind
        assert (loss.kl_coef, loss.kl_target) == (0.5, 0.1)
