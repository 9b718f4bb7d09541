"""What happens to a step whose loss or gradient is not finite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from safetensors.numpy import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_msrl.types import PreferenceExample


class NonFiniteSteps(L.Callback):
    """Skips them on all ranks, counts them, keeps their batches, and stops the run when there are too many.

    A skipped step changes neither weights nor the optimizer's state: parameters without a gradient are left
    alone. ``steps/skipped`` is logged; the batches lie in ``non_finite/`` in the run's folder as JSON, their
    pictures beside it in safetensors.

    Args:
        patience: Skipped steps in a row after which the run stops.
        keep: Newest batches to keep, of each rank.
    """

    def __init__(self, patience: int = 5, keep: int = 10) -> None:
        if min(patience, keep) < 1:
            raise ValueError(f"patience is {patience} and keep is {keep}; they must be at least 1")
        self.patience, self.keep = patience, keep
        self.skipped = self.in_a_row = 0
        self.batch: Sequence[PreferenceExample] = ()
        self.losses: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the batch."""
        self.batch = batch

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Remember the loss, without waiting for it."""
        self.losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Skip the step if any rank's loss or gradient is not finite.

        Raises:
            ValueError: It is the last that is put up with.
        """
        losses, self.losses = self.losses, []
        bad = torch.stack([~_finite(t).to(pl_module.device) for t in [*losses, *_gradients(optimizer)]]).any()
        if not trainer.strategy.reduce(bad.float(), reduce_op="max"):
            self.in_a_row = 0
            return
        optimizer.zero_grad(set_to_none=True)
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "non_finite"
        path = folder / f"step_{trainer.global_step}_rank_{trainer.global_rank}.json"
        dump(path, self.batch, {"step": trainer.global_step, "losses": [str(loss.item()) for loss in losses]})
        _keep_newest(folder, trainer.global_rank, self.keep)
        rank_zero_warn(f"step {trainer.global_step} is skipped: loss or gradient is not finite ({path})")
        if self.in_a_row >= self.patience:
            raise ValueError(
                f"{self.in_a_row} steps in a row had a loss or gradient that is not finite; their batches "
                f"are in {folder}; look at them or lower model.learning_rates, then --ckpt_path=last"
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log how many were skipped so far."""
        pl_module.log("steps/skipped", float(self.skipped), batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]


def dump(path: Path, batch: Sequence[PreferenceExample], facts: dict[str, Any]) -> None:
    """Write examples as JSON, and their frames beside it as ``<example>_<medium>_<frame>``, ``(H, W, 3)``."""
    frames: dict[str, np.ndarray] = {}
    for i, example in enumerate(batch):
        for j, medium in enumerate(example.media):
            decoded = medium.source if isinstance(medium.source, tuple) else ()
            pictures = [frame for frame in decoded if isinstance(frame, Image.Image)]
            frames |= {f"{i}_{j}_{k}": np.array(frame.convert("RGB")) for k, frame in enumerate(pictures)}
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [vars(e) | {"media": None, "rationale": e.rationale and asdict(e.rationale)} for e in batch]
    path.write_text(json.dumps(facts | {"examples": rows}, indent=1))
    if frames:
        save_file(frames, path.with_suffix(".safetensors"))


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The gradient's norm, of this rank's shards."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return [torch.stack([_local(p.grad).norm() for p in parameters]).sum()] if parameters else []


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _finite(tensor: Tensor) -> Tensor:
    return tensor.isfinite().all()


def _keep_newest(folder: Path, rank: int, count: int) -> None:
    dumps = sorted(folder.glob(f"*_rank_{rank}.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in dumps[:-count]:
        path.unlink()
        path.with_suffix(".safetensors").unlink(missing_ok=True)
