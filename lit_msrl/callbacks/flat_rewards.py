"""A warning when there has been nothing to learn for a while, with the likely cause."""

from __future__ import annotations

from collections import deque
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from lit_msrl import functional as F
from lit_msrl.rollout import Rollout
from lit_msrl.stages.rlvr import RLVRModule


class FlatRewardsWarning(L.Callback):
    """Warns when for some steps on end the completions of nearly every group (95 %) earned the same.

    Args:
        patience: Steps without anything to learn before the warning; it comes once a run.
    """

    def __init__(self, patience: int = 10) -> None:
        self.patience = patience
        self.recent: deque[Rollout] = deque(maxlen=patience)
        self.warned = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the step."""
        if self.warned or not isinstance(pl_module, RLVRModule):
            return
        rollout = pl_module.last_rollout
        alike = F.zero_variance(rollout.rewards, rollout.group_size).float().mean()
        if alike < 0.95:
            self.recent.clear()
            return
        self.recent.append(rollout)
        if len(self.recent) == self.patience:
            self.warned = True
            rank_zero_warn(
                f"In the last {self.patience} steps the completions of nearly every prompt earned the same: "
                f"there is nothing to learn. Likely cause: {likely_cause(list(self.recent))}"
            )


def likely_cause(rollouts: list[Rollout]) -> str:
    """Why the rewards of these rollouts are flat, and what to do about it."""
    if _mean([float(rollout.truncated.float().mean()) for rollout in rollouts]) > 0.95:
        return "nearly all completions were cut off; raise model.max_completion."
    if not any(judgement.answer for rollout in rollouts for judgement in rollout.judgements):
        return "no completion holds a verdict the grammar can read; start from the SFT stage (--start_from)."
    if not any(judgement.well_formed for rollout in rollouts for judgement in rollout.judgements):
        return "no completion has the format; start from the SFT stage (--start_from)."
    accuracy = _mean([float(rollout.reward_parts["accuracy"].mean()) for rollout in rollouts])
    if accuracy > 0.95:
        return "nearly every verdict is right; the data are too easy for this model."
    if accuracy < 0.05:
        return "nearly every verdict is wrong; check the labels (are candidates 1 and 2 mixed up?)."
    return "the completions of a prompt all agree; raise model.temperature or model.group_size."


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
