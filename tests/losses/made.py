"""Rollouts of numbers, without a policy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_msrl.losses import RLVRLoss
from lit_msrl.prompts import render
from lit_msrl.rollout import Rollout
from lit_msrl.types import PreferenceExample


class Encoded:
    def select(self, groups: slice) -> Encoded:
        return self


def make(loss: RLVRLoss, rewards: Tensor, mask: Tensor, group_size: int = 2, **changes: Any) -> Rollout:
    """A rollout with the credit and the normalizer of a loss; the longest completion has 4 tokens."""
    count = len(rewards)
    prompt = render(PreferenceExample("1", "text", "2+2?", 1, candidates=("4", "5")))
    truncated = changes.pop("truncated", torch.zeros(count, dtype=torch.bool))
    fields: dict[str, Any] = {
        "prompts": [prompt] * (count // group_size),
        "batch": Encoded(),
        "completion_ids": torch.zeros_like(mask, dtype=torch.long),
        "completion_mask": mask,
        "group_size": group_size,
        "texts": [""] * count,
        "judgements": [None] * count,
        "rewards": rewards,
        "reward_parts": {},
        "advantages": loss.advantages(rewards, group_size),
        "truncated": truncated,
        "normalizer": loss.normalizer(loss.counted(mask, truncated), max_length=4),
    }
    return Rollout(**(fields | changes))
