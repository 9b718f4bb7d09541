"""Did exactly the declared parts learn?"""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_msrl.stages.base import StageModule


class TrainablePartsCheck(L.Callback):
    """After the first optimizer step with a gradient, compare every parameter with its value before.

    A frozen parameter that moved, or a declared part of which nothing moved, stops the run.
    """

    def __init__(self) -> None:
        self.before: dict[str, Tensor] = {}
        self.settled = False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the parameters."""
        if not self.settled and not self.before:
            self.before = {name: p.detach().clone() for name, p in _policy(pl_module).named_parameters()}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare.

        Raises:
            RuntimeError: Other parameters moved than the stage declares.
        """
        if self.settled or trainer.global_step == 0:
            return
        policy, declared = _policy(pl_module), set(pl_module.learning_rates)  # type: ignore[arg-type]
        moved = {name for name, p in policy.named_parameters() if not p.equal(self.before[name])}
        if not moved:  # a step without a gradient, such as one whose groups all agreed
            return
        trained = {name for part in declared for name, _ in policy.parts()[part]}
        idle = [part for part in declared if not moved & {name for name, _ in policy.parts()[part]}]
        if moved - trained:
            raise RuntimeError(f"{len(moved - trained)} frozen parameters moved, e.g. {min(moved - trained)}")
        if idle and self._expected(idle, batch):
            raise RuntimeError(
                f"nothing moved in {', '.join(idle)}, which model.learning_rates declares as trained"
            )
        self.before, self.settled = {}, True
        rank_zero_info(
            f"Trained parts: {', '.join(sorted(declared))} ({len(moved)} of {len(trained)} tensors moved)."
        )

    @staticmethod
    def _expected(idle: list[str], batch: Any) -> bool:
        """Vision and projector can stand still where no example of the batch has a picture."""
        return "language" in idle or any(example.media for example in batch)


def _policy(module: L.LightningModule) -> Any:
    assert isinstance(module, StageModule)
    return module.policy
