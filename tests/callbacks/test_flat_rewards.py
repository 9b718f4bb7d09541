"""The warning that nothing is being learned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lit_msrl.callbacks import FlatRewardsWarning, flat_rewards
from lit_msrl.callbacks.flat_rewards import likely_cause
from lit_msrl.prompts import Judgement
from lit_msrl.rollout import Rollout
from tests.callbacks.test_completions import rollout
from tests.conftest import tiny_internvl
from tests.stages.test_rlvr import Even, Uneven, data, module, trainer


def made(
    *, truncated: bool = False, formed: bool = True, answer: Any = "A", accuracy: float = 0.5
) -> Rollout:
    return replace(
        rollout(),
        truncated=torch.full((4,), truncated),
        judgements=[Judgement(formed, answer, None, {})] * 4,
        reward_parts={"accuracy": torch.full((4,), accuracy)},
    )


@pytest.mark.parametrize(
    ("seen", "cause"),
    [
        (made(truncated=True, formed=False, answer=None), "cut off"),
        (made(formed=False, answer=None), "no completion holds a verdict"),
        (made(formed=False), "no completion has the format"),
        (made(accuracy=1.0), "too easy"),
        (made(accuracy=0.0), "check the labels"),
        (made(), "all agree"),
    ],
)
def test_the_likely_cause(seen: Rollout, cause: str) -> None:
    assert cause in likely_cause([seen, seen])


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the callback says."""
    messages: list[str] = []
    monkeypatch.setattr(flat_rewards, "rank_zero_warn", messages.append)
    return messages


@pytest.mark.parametrize(
    ("reward", "patience", "warnings"), [(Even(), 2, 1), (Even(), 4, 0), (Uneven(), 1, 0)]
)
def test_it_warns_once_and_after_its_patience(
    tmp_path, told: list[str], reward, patience: int, warnings: int
) -> None:
    callback = FlatRewardsWarning(patience=patience)
    trainer(tmp_path, max_steps=3, callbacks=[callback]).fit(
        module(tiny_internvl(seed=1), reward=reward), data()
    )
    assert len(told) == warnings
    assert all("In the last 2 steps" in message and "Likely cause: " in message for message in told)
