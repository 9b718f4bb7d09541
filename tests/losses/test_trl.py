"""The same tensors through TRL's own losses; runs where trl is importable (last run with trl 1.16.0)."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_msrl import functional as F
from lit_msrl.losses import (
    CISPOLoss,
    DAPOLoss,
    DrGRPOLoss,
    GRPOLoss,
    GSPOLoss,
    PolicyGradientLoss,
    RLOOLoss,
    SAPOLoss,
)
from tests.losses.made import make

trl = pytest.importorskip("trl", minversion="1.16")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of trl are not ours to mend

LENGTHS = torch.tensor([1, 2, 4, 1, 3, 4])


class Tensors:
    """Three groups of two, of up to four tokens."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.mask = torch.arange(4) < LENGTHS[:, None]
        base, *noise = torch.randn(5, 6, 4)
        self.logprobs = (base - 2).requires_grad_()
        self.old, self.ref, self.sampler, spread = (base - 2 + 0.3 * each for each in noise)
        self.entropy = spread.abs()
        self.rewards = torch.rand(6)


def ours(loss: PolicyGradientLoss, tensors: Tensors) -> tuple[Tensor, Tensor]:
    rollout = make(
        loss, tensors.rewards, tensors.mask, old_logprobs=tensors.old, ref_logprobs=tensors.ref,
        sampler_logprobs=tensors.sampler,
    )  # fmt: skip
    value = loss(tensors.logprobs, rollout, tensors.entropy).loss
    return value.detach(), torch.autograd.grad(value, tensors.logprobs)[0]


def theirs(
    tensors: Tensors, advantages: Tensor, trainer: type, inputs: dict[str, Any] | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """``_compute_loss`` of a trainer that is nothing but its settings."""
    settings = {
        "importance_sampling_level": "token", "loss_type": "dapo", "beta": 0.0, "epsilon_low": 0.2,
        "epsilon_high": 0.2, "entropy_coef": 0.0, "use_vllm": False,
    } | options  # fmt: skip
    fake = SimpleNamespace(
        **settings,
        _get_per_token_logps_and_entropies=lambda *_, **__: (tensors.logprobs, tensors.entropy, None),
        _entropy_bonus_enabled=settings["entropy_coef"] != 0,
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x
        ),
        args=SimpleNamespace(
            delta=None, use_bias_correction_kl=False, sapo_temperature_pos=1.0, sapo_temperature_neg=1.05
        ),
        model=SimpleNamespace(training=False),
        _metrics=defaultdict(lambda: defaultdict(list)),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_adaptive_entropy=False,
        vllm_importance_sampling_correction=True,
        max_completion_length=4,
    )
    ids = torch.zeros(6, 4, dtype=torch.long)
    given = {
        "prompt_ids": ids, "prompt_mask": torch.ones_like(ids), "completion_ids": ids,
        "completion_mask": tensors.mask.long(), "advantages": advantages, "old_per_token_logps": tensors.old,
        "old_logps": (tensors.old * tensors.mask).sum(1), "ref_per_token_logps": tensors.ref,
        "num_items_in_batch": tensors.mask.sum(),
    }  # fmt: skip
    value = trainer._compute_loss(fake, None, given | (inputs or {}))  # type: ignore[attr-defined]
    return value.detach(), torch.autograd.grad(value, tensors.logprobs)[0]


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (GRPOLoss(aggregate="sequence"), {"loss_type": "grpo"}),
        (GRPOLoss(kl_coef=0.3, scale="batch"), {"beta": 0.3}),
        (GRPOLoss(entropy_coef=0.3), {"entropy_coef": 0.3}),
        (DrGRPOLoss(), {"loss_type": "dr_grpo"}),
        (DAPOLoss(), {"epsilon_high": 0.28}),
        (
            GSPOLoss(clip_range=0.1, clip_range_high=0.1),
            {
                "loss_type": "grpo",
                "importance_sampling_level": "sequence",
                "epsilon_low": 0.1,
                "epsilon_high": 0.1,
            },
        ),
        (CISPOLoss(clip_range_high=0.2), {"loss_type": "cispo", "epsilon_high": 1.2}),
        (SAPOLoss(), {"loss_type": "sapo"}),
    ],
    ids=lambda case: type(case).__name__ if isinstance(case, PolicyGradientLoss) else "",
)
def test_grpo_and_its_kin(loss: PolicyGradientLoss, options: dict[str, Any]) -> None:
    tensors = Tensors()
    advantages = tensors.rewards.view(3, 2) - tensors.rewards.view(3, 2).mean(1, keepdim=True)
    if loss.scale != "none":
        deviation = tensors.rewards.view(3, 2).std(1, keepdim=True) if loss.scale == "group" else None
        advantages = advantages / ((tensors.rewards.std() if deviation is None else deviation) + 1e-4)
    assert_close(ours(loss, tensors), theirs(tensors, advantages.flatten(), trl.GRPOTrainer, **options))


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("how", ["truncate", "mask"])
def test_correction(level: str, how: str) -> None:
    tensors = Tensors()
    loss = GRPOLoss(correction=f"{level}_{how}", correction_cap=1.1, kl_coef=0.3)  # type: ignore[arg-type]
    difference = (tensors.old - tensors.sampler) * tensors.mask  # as GRPOTrainer has it, around its line 2662
    if level == "sequence":
        difference = difference.sum(dim=-1, keepdim=True)
    ratio = difference.exp()
    ratio = ratio.clamp(max=1.1) if how == "truncate" else ratio.masked_fill(ratio > 1.1, 0)
    advantages = loss.advantages(tensors.rewards, 2)
    inputs = {"importance_sampling_ratio": ratio}
    found = theirs(tensors, advantages, trl.GRPOTrainer, inputs, use_vllm=True, beta=0.3)
    assert_close(ours(loss, tensors), found)


def test_rloo() -> None:
    tensors = Tensors()
    others = tensors.rewards.view(3, 2).flip(1).flatten()
    assert_close(ours(RLOOLoss(), tensors), theirs(tensors, tensors.rewards - others, trl.RLOOTrainer))


def test_soft_overlong_punishment() -> None:
    rewards = pytest.importorskip("trl.rewards")
    expected = rewards.get_soft_overlong_punishment(10, 4)(completion_ids=[[0] * n for n in range(11)])
    assert_close(F.overlong_penalty(torch.arange(11), 10, 4), torch.tensor(expected, dtype=torch.float32))
