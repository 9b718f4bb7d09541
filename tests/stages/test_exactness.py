"""Loss, metrics and gradient of a step: the same however it is cut, shared or spread, for every loss.

A run takes one step per case on weights that do not move. Completions differ in length, some groups agree,
and the log-probabilities to compare with are made up, so that ratios, clips and KL have work to do.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_msrl import losses
from lit_msrl.engines import Completions
from lit_msrl.policy import GenerativeRMPolicy, PromptBatch
from lit_msrl.rewards import ConsistencyReward, RewardSum
from lit_msrl.rollout import Lesson
from tests.conftest import tiny_internvl
from tests.fakes import ScriptedEngine
from tests.stages.test_lessons import script
from tests.stages.test_rlvr import Stage, data, trainer


class Case(NamedTuple):
    name: str
    loss: losses.PolicyGradientLoss
    both_orders: bool = False


TERMS: dict[str, Any] = {"kl_coef": 0.1, "entropy_coef": 0.01, "mask_truncated": True}
TERMS |= {"correction": "token_truncate", "correction_cap": 1.2}
CASES = [
    Case("GRPO", losses.GRPOLoss()),
    Case("DrGRPO", losses.DrGRPOLoss()),
    Case("DAPO", losses.DAPOLoss()),
    Case("GSPO", losses.GSPOLoss(clip_range=0.05, clip_range_high=0.05)),
    Case("CISPO", losses.CISPOLoss(clip_range_high=0.1)),
    Case("SAPO", losses.SAPOLoss()),
    Case("RLOO", losses.RLOOLoss()),
    Case("REINFORCE++", losses.ReinforcePlusPlusLoss()),
    Case("REINFORCE++-baseline", losses.ReinforcePlusPlusLoss(group_baseline=True)),
    Case("scaled by the batch", losses.GRPOLoss(scale="batch")),
    Case("scaled by the batch, both orders", losses.GRPOLoss(scale="batch"), both_orders=True),
    Case("all terms by sequence", losses.GRPOLoss(aggregate="sequence", **TERMS)),
    Case("all terms by a constant", losses.ReinforcePlusPlusLoss(aggregate="constant", **TERMS)),
]


def made_up(ids: Tensor, salt: int) -> Tensor:
    """Noise that is a function of the tokens and their places alone."""
    return 0.3 * torch.sin(ids * (1.7 + salt) + torch.arange(ids.shape[1]))


class Steps(Stage):
    """One step per case; keeps the gradient and the metrics of each."""

    def __init__(self, path: Path, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.path, self.found = path, {}

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.name_of_case, self.loss, self.both_orders = CASES[self.global_step]
        self.pool.loss = self.loss
        self.reward = RewardSum(others=[ConsistencyReward(0.5)] if self.both_orders else None)
        super().training_step(batch, batch_idx)

    def _compared(self, lesson: Lesson) -> Lesson:
        logprobs, ids = self._logprobs_under(self.policy, lesson), lesson.completion_ids
        others = [logprobs + made_up(ids, salt) for salt in range(3)]
        return replace(lesson, old_logprobs=others[0], ref_logprobs=others[1], sampler_logprobs=others[2])

    def learn(self, lessons: list[Lesson]) -> dict[str, Tensor]:
        metrics = super().learn(lessons)
        self.found[self.name_of_case] |= metrics
        if self.global_rank == 0:
            torch.save(self.found, self.path)
        return metrics

    def descend(self) -> dict[str, Tensor]:
        gradient = {name: p.grad.clone() for name, p in self.policy.named_parameters() if p.grad is not None}
        self.found[self.name_of_case] = gradient
        return super().descend()


class PlainPolicy(GenerativeRMPolicy):
    """Reads the prompt again for each completion: one row of prompt and completion, no padding, no cache."""

    def logprobs(
        self, batch: PromptBatch, completion_ids: Tensor, completion_mask: Tensor, *, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        group, rows = len(completion_ids) // len(batch), []
        for row, (ids, mask) in enumerate(zip(completion_ids, completion_mask, strict=True)):
            prompt, written = batch.select(slice(row // group, row // group + 1)), ids[mask]
            full = torch.cat([prompt.input_ids[0], written])[None]
            states = self.model.model(input_ids=full, attention_mask=torch.ones_like(full), **prompt.media)[0]
            scores = self.scores(states[0, prompt.input_ids.shape[1] - 1 : -1]).log_softmax(-1)  # (t, V)
            both = scores.gather(1, written[:, None])[:, 0], -(scores.exp() * scores).sum(-1)
            rows.append(torch.nn.functional.pad(torch.stack(both), (0, len(ids) - len(written))))
        logprobs, entropy = torch.stack(rows, dim=1)
        return logprobs + self._unseen(batch), entropy


class CuttingEngine(ScriptedEngine):
    """Every fourth completion does not reach its end."""

    def generate(self, *args: Any, **options: Any) -> Completions:
        drawn = super().generate(*args, **options)
        last = drawn.mask.sum(1, keepdim=True) - 1
        cut = drawn.mask.scatter(1, last, torch.arange(len(drawn.mask))[:, None] % 4 != 3)
        return Completions(drawn.ids, cut, drawn.logprobs * cut)


def run(
    path: Path, *, ranks: int = 1, micro_batch_size: int = 12, plain: bool = False
) -> dict[str, dict[str, Tensor]]:
    """The gradient and the metrics of every case, by its name."""
    policy = tiny_internvl(seed=1)
    if plain:
        policy.__class__ = PlainPolicy
    stage = Steps(
        path,
        policy,
        {"language": 0.0, "projector": 0.0, "vision": 0.0},
        partial(torch.optim.SGD, lr=0.0),
        CASES[0].loss,
        engine=CuttingEngine(script),
        group_size=4,
        micro_batch_size=micro_batch_size,
        max_completion=32,
        style="compact",
    )
    strategy = "ddp_spawn" if ranks > 1 else "auto"
    trainer(path.parent, strategy=strategy, devices=ranks, max_steps=len(CASES)).fit(stage, data(6 // ranks))
    return torch.load(path)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """One rank, one micro-batch, prompts shared."""
    found = run(tmp_path_factory.mktemp("exactness") / "whole.pt")
    assert found.keys() == {case.name for case in CASES}
    for name, numbers in found.items():
        assert max(number.abs().max() for number in numbers.values()) > 1e-2, name
    return found


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"micro_batch_size": 1}, id="micro-batches of 1"),
        pytest.param({"micro_batch_size": 4}, id="micro-batches of 4"),
        pytest.param({"plain": True}, id="prompts repeated"),
        pytest.param({"ranks": 2, "micro_batch_size": 2}, id="two ranks", marks=pytest.mark.slow),
    ],
)
def test_a_step_is_the_same(
    tmp_path: Path, expected: dict[str, dict[str, Tensor]], how: dict[str, Any]
) -> None:
    found = run(tmp_path / "found.pt", **how)
    assert found.keys() == expected.keys()
    for case, numbers in expected.items():
        assert found[case].keys() == numbers.keys()
        for name, number in numbers.items():
            told = f"{case}, {name}"
            assert_close(
                found[case][name], number, atol=1e-5, rtol=1e-5, msg=lambda m, told=told: f"{told}: {m}"
            )
