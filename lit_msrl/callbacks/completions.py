"""Sample completions in TensorBoard, with what they earned."""

from __future__ import annotations

from html import escape
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from lit_msrl.rollout import Rollout
from lit_msrl.stages.rlvr import RLVRModule


class CompletionTable(L.Callback):
    """Writes the first group of a rollout as a table to TensorBoard's text tab.

    Args:
        every_n_steps: Steps between tables.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a table."""
        due = batch_idx % self.every_n_steps == 0
        if due and isinstance(pl_module, RLVRModule) and isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.experiment.add_text(
                "completions", table(pl_module.last_rollout), trainer.global_step
            )


def table(rollout: Rollout, group: int = 0) -> str:
    """One group as a Markdown table: what was asked; each completion's rewards, advantage and text."""
    prompt, parts = rollout.prompts[group], rollout.reward_parts
    columns = ["reward", *parts, "advantage", "completion"]
    lines = [
        f"`{_cell(prompt.text)}`",
        "",
        f"label **{prompt.label}**",
        "",
        f"| {' | '.join(columns)} |",
        "|--" * len(columns) + "|",
    ]
    for i in range(group * rollout.group_size, (group + 1) * rollout.group_size):
        earned = [f"{reward[i]:.2f}" for reward in (rollout.rewards, *parts.values())]
        cells = [*earned, f"{rollout.advantages[i]:+.2f}", _cell(rollout.texts[i])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return escape(text).replace("|", "&#124;").replace("\n", "<br>").replace("`", "'")
