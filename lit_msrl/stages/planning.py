"""How many groups a forward and backward takes: as many as fit.

What ``footprint`` estimates before a run is measured here, for the step's data and the free memory are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import psutil
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lit_msrl.footprint import LOGIT_CHUNK, LOGIT_COPIES
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.rollout import Lesson
from lit_msrl.strategies import local

MicroBatchSize = int | Literal["auto"]
SHARE = 0.8  # of the free memory that is planned with; the rest is for what is not foreseen
BACKWARD = 1.3  # the backward's own tensors, with what the forward keeps (measured: 1.2)
SCORED = LOGIT_CHUNK * LOGIT_COPIES * 4  # bytes per vocabulary entry while `token_logprobs` scores a chunk


class MicroBatchPlan:
    """The number of groups per micro-batch.

    ``auto`` measures what the forward of the step's worst group keeps for its backward, and plans with all
    groups as large. It measures again when a step has a larger one.

    Args:
        size: Groups per micro-batch, or ``auto``.

    Attributes:
        groups: What it comes to; 1 until ``auto`` has measured.
    """

    def __init__(self, size: MicroBatchSize) -> None:
        self.auto = size == "auto"
        self.groups = 1 if size == "auto" else size
        self.measured_tokens, self.group_bytes = 0, 0
        self.halved = False

    def update(
        self,
        lessons: Sequence[Lesson],
        policy: GenerativeRMPolicy,
        optimizer: LightningOptimizer,
        worst: Callable[[Tensor], Tensor],
    ) -> None:
        """Plan for a step.

        Args:
            lessons: What it learns from.
            policy: Who learns.
            optimizer: It, too, takes memory when it first steps.
            worst: The largest of all ranks, so that they agree.
        """
        if not self.auto:
            return
        groups = [group for lesson in lessons for group in lesson.micro_batches(1)]
        largest = max(groups, key=group_tokens)
        tokens = int(worst(torch.tensor(group_tokens(largest), device=policy.device)))
        if tokens > self.measured_tokens:
            self.measured_tokens, self.group_bytes = tokens, kept_bytes(policy, largest)
        budget = SHARE * free_bytes(policy.device) - future_bytes(optimizer)
        budget -= SCORED * policy.head.weight.shape[0]
        fits = torch.tensor(
            budget / (BACKWARD * max(self.group_bytes, 1)), dtype=torch.float32, device=policy.device
        )
        self.groups = min(max(int(-worst(-fits)), 1), max(len(lesson.batch) for lesson in lessons))

    def halve(self) -> str:
        """Take half as many from now on, if that was not done before; returns what to say of it."""
        if self.halved or self.groups == 1:
            return ""
        self.halved, self.auto, self.groups = True, False, self.groups // 2
        return f"model.micro_batch_size={self.groups}, which may be set from the start"


def group_tokens(group: Lesson) -> int:
    """Tokens of a lesson of one group: the prompt once, and its completions."""
    return group.batch.input_ids.numel() + group.completion_ids.numel()


def kept_bytes(policy: GenerativeRMPolicy, group: Lesson) -> int:
    """What the forward of a group keeps for its backward, parameters aside."""
    own = {local(parameter).untyped_storage().data_ptr() for parameter in policy.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
        policy.logprobs(group.batch, group.completion_ids, group.completion_mask)
    return sum(kept.values())


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken: of the device, or of the machine."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def future_bytes(optimizer: LightningOptimizer) -> int:
    """Gradients, and before the first step AdamW's two moments; other optimizers keep less."""
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    copies = 1 if optimizer.optimizer.state else 3
    return copies * sum(local(parameter).nbytes for parameter in trained)
