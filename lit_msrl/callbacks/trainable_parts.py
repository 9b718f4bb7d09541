"""Did exactly the declared parts learn?"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_msrl.stages.base import StageModule
from lit_msrl.strategies import local


class TrainablePartsCheck(L.Callback):
    """After the first optimizer step with a gradient, compare every parameter's checksum with that before.

    A frozen parameter that moved, or a declared part of which nothing moved, stops the run. A parameter moved
    if a rank's part of it did.
    """

    def __init__(self) -> None:
        self.before: Tensor | None = None
        self.settled = False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the parameters."""
        if not self.settled and self.before is None:
            self.before = checksums(_policy(pl_module))

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
        changed = (checksums(policy) != self.before).int().to(trainer.strategy.root_device)
        changed = trainer.strategy.reduce(changed, reduce_op="max")  # a part may have moved on another rank
        moved = {name for (name, _), flag in zip(policy.named_parameters(), changed, strict=True) if flag}
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
        self.before, self.settled = None, True
        rank_zero_info(
            f"Trained parts: {', '.join(sorted(declared))} ({len(moved)} of {len(trained)} tensors moved)."
        )

    @staticmethod
    def _expected(idle: list[str], batch: Any) -> bool:
        """Vision and projector can stand still where no example of the batch has a picture."""
        return "language" in idle or any(example.media for example in batch)


def checksums(policy: torch.nn.Module) -> Tensor:
    """One number per parameter, of the bits that this rank holds; cheaper than a copy of the model."""
    return torch.stack([_checksum(local(parameter.detach())).cpu() for parameter in policy.parameters()])


def _checksum(tensor: Tensor) -> Tensor:
    """The sum of the bits, weighted by place, so that opposite changes do not cancel."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for part in tensor.contiguous().flatten().view(words).split(2**22):
        total += (part.long() * torch.arange(1, len(part) + 1, device=part.device)).sum()
    return total


def _policy(module: L.LightningModule) -> Any:
    assert isinstance(module, StageModule)
    return module.policy
