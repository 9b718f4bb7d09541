"""The arithmetic, against numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from lit_msrl import functional as F

LOSSES = torch.tensor([[1.0, 2.0, 6.0], [4.0, 8.0, 99.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])


class TestGroupAdvantages:
    # two groups of three: means 1 and 4
    rewards = torch.tensor([0.0, 1.0, 2.0, 4.0, 4.0, 4.0])

    def test_centred(self) -> None:
        assert_close(F.group_advantages(self.rewards, 3), torch.tensor([-1.0, 0.0, 1.0, 0.0, 0.0, 0.0]))

    def test_scaled(self) -> None:
        # std = sqrt((1 + 0 + 1) / 2) = 1; 1 / (1 + 0.25) = 0.8; the equal group is 0 / (0 + 0.25)
        expected = torch.tensor([-0.8, 0.0, 0.8, 0.0, 0.0, 0.0])
        assert_close(F.group_advantages(self.rewards, 3, scale="group", eps=0.25), expected)
        # std = sqrt(2 * 0.5 ** 2 / 1) = 0.70711; 0.5 / (0.70711 + 0.0001) = 0.70701
        pair = F.group_advantages(torch.tensor([1.0, 0.0]), 2, scale="group")
        assert_close(pair, torch.tensor([0.70701, -0.70701]), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("group_size", [0, 1, 4, -2])
    def test_broken_groups_are_refused(self, group_size: int) -> None:
        with pytest.raises(ValueError, match=f"6 rewards .* group_size={group_size}"):
            F.group_advantages(self.rewards, group_size)

    @given(
        st.lists(st.floats(-10, 10, width=32), min_size=4, max_size=4),
        st.sampled_from(["group", "batch", "none"]),
    )
    def test_every_group_sums_to_zero(self, rewards: list[float], scale: F.Scale) -> None:
        advantages = F.group_advantages(torch.tensor(rewards), 2, scale=scale)
        assert_close(advantages.view(2, 2).sum(1), torch.zeros(2), atol=1e-4, rtol=0)


class TestClippedSurrogate:
    ratio = torch.tensor([[0.5, 1.0, 1.5], [0.5, 1.0, 1.5]])
    advantages = torch.tensor([[2.0], [-2.0]])

    def test_values(self) -> None:
        # the ratio is clipped to 0.8 .. 1.3
        # A =  2: min( 1.0,  1.6) =  1.0 | min( 2,  2) =  2 | min( 3.0,  2.6) =  2.6
        # A = -2: min(-1.0, -1.6) = -1.6 | min(-2, -2) = -2 | min(-3.0, -2.6) = -3.0
        expected = -torch.tensor([[1.0, 2.0, 2.6], [-1.6, -2.0, -3.0]])
        assert_close(F.clipped_surrogate(self.ratio, self.advantages, 0.2, 0.3), expected)

    def test_no_gradient_beyond_the_clip(self) -> None:
        ratio = self.ratio.clone().requires_grad_()
        F.clipped_surrogate(ratio, self.advantages, 0.2, 0.3).sum().backward()
        # raising a good token is clipped at 1.5, lowering a bad one at 0.5; the way back is never clipped
        assert_close(ratio.grad, torch.tensor([[-2.0, -2.0, 0.0], [0.0, 2.0, 2.0]]))


class TestKL:
    logprobs = torch.tensor([[-1.0, -2.0]])
    ref_logprobs = torch.tensor([[-2.0, -1.0]])

    def test_values(self) -> None:
        assert_close(F.k1_kl(self.logprobs, self.ref_logprobs), torch.tensor([[1.0, -1.0]]))
        assert_close(F.k2_kl(self.logprobs, self.ref_logprobs), torch.tensor([[0.5, 0.5]]))
        # log q/p = -1: 1/e + 1 - 1; log q/p = 1: e - 1 - 1
        assert_close(F.k3_kl(self.logprobs, self.ref_logprobs), torch.tensor([[1 / math.e, math.e - 2]]))

    @pytest.mark.parametrize("kl", [F.k1_kl, F.k2_kl, F.k3_kl])
    def test_a_policy_does_not_differ_from_itself(self, kl) -> None:
        assert_close(kl(self.logprobs, self.logprobs), torch.zeros(1, 2))

    def test_k1_and_k3_estimate_the_kl(self) -> None:
        p, q = (
            torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64),
            torch.tensor([[0.2, 0.2, 0.6]], dtype=torch.float64),
        )
        exact = (p * (p / q).log()).sum()
        assert_close((p * F.k1_kl(p.log(), q.log())).sum(), exact)
        assert_close((p * F.k3_kl(p.log(), q.log())).sum(), exact)


class TestAggregate:
    @pytest.mark.parametrize(
        ("mode", "divisor", "expected"),
        [
            ("token", 5.0, 4.2),  # (1 + 2 + 6 + 4 + 8) / 5
            ("sequence", 2.0, 4.5),  # ((1 + 2 + 6) / 3 + (4 + 8) / 2) / 2
            ("constant", 8.0, 2.625),  # 21 / (2 * 4)
        ],
    )
    def test_values(self, mode: F.Aggregation, divisor: float, expected: float) -> None:
        found = F.normalizer(MASK, mode, max_length=4)
        assert found.item() == divisor
        assert_close(F.aggregate(LOSSES, MASK, mode, normalizer=found), torch.tensor(expected))

    @pytest.mark.parametrize("mode", ["token", "sequence", "constant"])
    def test_micro_batches_add_up(self, mode: F.Aggregation) -> None:
        whole = F.normalizer(MASK, mode, max_length=4)
        parts = [F.aggregate(LOSSES[i : i + 1], MASK[i : i + 1], mode, normalizer=whole) for i in range(2)]
        assert_close(sum(parts), F.aggregate(LOSSES, MASK, mode, normalizer=whole))
        halves = [F.normalizer(MASK[i : i + 1], mode, max_length=4) for i in range(2)]
        assert_close(sum(halves), whole)  # and so do the normalizers of ranks

    @pytest.mark.parametrize("mode", ["token", "sequence", "constant"])
    def test_what_is_masked_adds_nothing(self, mode: F.Aggregation) -> None:
        losses = LOSSES.masked_fill(~MASK, math.nan)
        assert F.aggregate(losses, MASK, mode, normalizer=1.0).isfinite()

    @pytest.mark.parametrize("mode", ["token", "sequence", "constant"])
    def test_nothing_to_learn_is_zero_and_differentiable(self, mode: F.Aggregation) -> None:
        losses, mask = LOSSES.clone().requires_grad_(), torch.zeros_like(MASK)
        loss = F.aggregate(losses, mask, mode, normalizer=F.normalizer(mask, mode, max_length=4))
        loss.backward()
        assert loss.item() == 0
        assert_close(losses.grad, torch.zeros_like(LOSSES))

    def test_masked_mean(self) -> None:
        assert F.masked_mean(LOSSES, MASK).item() == pytest.approx(4.2)
        assert F.masked_mean(LOSSES, torch.zeros_like(MASK)).item() == 0


class TestTokenLogprobs:
    @pytest.fixture
    def head(self) -> nn.Linear:
        torch.manual_seed(0)
        return nn.Linear(4, 11, bias=False, dtype=torch.float64)

    def plain(
        self, hidden: Tensor, head: nn.Module, tokens: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        distribution = torch.distributions.Categorical(logits=head(hidden) / temperature)
        return distribution.log_prob(tokens), distribution.entropy()

    @pytest.mark.parametrize("chunk", [1, 3, 7, 100])
    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    def test_equals_plain_log_softmax_in_value_and_gradient(
        self, head: nn.Linear, chunk: int, temperature: float
    ) -> None:
        hidden = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
        tokens, upstream = torch.randint(11, (7,)), torch.randn(7, dtype=torch.float64)
        expected, expected_entropy = self.plain(hidden, head, tokens, temperature)
        expected_gradients = torch.autograd.grad((expected * upstream).sum(), [hidden, head.weight])

        found, entropy = F.token_logprobs(hidden, head, tokens, temperature=temperature, chunk=chunk)
        assert_close(found, expected)
        assert_close(entropy, expected_entropy.detach())
        assert_close(torch.autograd.grad((found * upstream).sum(), [hidden, head.weight]), expected_gradients)

    @pytest.mark.parametrize("grad", [True, False])
    def test_never_holds_more_than_a_chunk_of_logits(self, head: nn.Linear, grad: bool) -> None:
        seen: list[int] = []
        head.register_forward_hook(lambda _module, _inputs, logits: seen.append(len(logits)))
        hidden = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
        kept: list[int] = []
        with (
            torch.set_grad_enabled(grad),
            torch.autograd.graph.saved_tensors_hooks(
                lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x
            ),
        ):
            logprobs, _ = F.token_logprobs(hidden, head, torch.randint(11, (7,)), chunk=3)
        assert seen == [3, 3, 1]
        assert 3 * 11 not in kept  # no chunk of logits waits for the backward pass
        if grad:
            logprobs.sum().backward()
            assert seen == [3, 3, 1] * 2 or seen == [3, 3, 1, 1, 3, 3]  # made again, in either order

    def test_half_precision_logits_are_scored_in_fp32(self) -> None:
        head = nn.Linear(4, 11, dtype=torch.bfloat16)
        hidden, tokens = torch.randn(5, 4, dtype=torch.bfloat16), torch.randint(11, (5,))
        logprobs, entropy = F.token_logprobs(hidden, head, tokens)
        assert (logprobs.dtype, entropy.dtype) == (torch.float32, torch.float32)
        assert_close(logprobs, self.plain(hidden, lambda h: head(h).float(), tokens, 1.0)[0])  # type: ignore[arg-type]

    def test_the_gradient_of_the_entropy(self, head: nn.Linear) -> None:
        hidden = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
        tokens = torch.randint(11, (7,))
        expected = torch.autograd.grad(self.plain(hidden, head, tokens, 1.0)[1].sum(), hidden)
        found = torch.autograd.grad(F.token_logprobs(hidden, head, tokens, chunk=3)[1].sum(), hidden)
        assert_close(found, expected)

    def test_impossible_tokens_leave_the_entropy_a_gradient(self) -> None:
        hidden = torch.tensor([[0.0, 1.0, -1e4]], requires_grad=True)
        F.token_logprobs(hidden, lambda h: h, torch.tensor([0]))[1].sum().backward()
        assert hidden.grad is not None
        assert hidden.grad.isfinite().all()

    def test_no_tokens(self, head: nn.Linear) -> None:
        hidden = torch.empty(0, 4, dtype=torch.float64)
        logprobs, entropy = F.token_logprobs(hidden, head, torch.empty(0, dtype=torch.long))
        assert logprobs.shape == entropy.shape == (0,)
