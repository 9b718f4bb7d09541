"""Sharding over GPUs: FSDP2 with this project's defaults (docs/adr/0011)."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from lit_msrl.policy import GenerativeRMPolicy


class FSDP2(ModelParallelStrategy):
    """Every rank holds a part of each weight, gradient and optimizer state, and its own part of the batch.

    All ranks of all nodes form one data-parallel group; there is no tensor parallelism. Lightning's own
    default would be tensor parallelism within a node, which this code does not implement.

    Args:
        compute: Weights are gathered, and the model computes, in this type; ``None`` keeps that of the
            weights. Gradients are summed, and the optimizer steps, in the type the weights were loaded in.
        cpu_offload: Keep weights, gradients and optimizer states in host memory, and step there.
        sharded_checkpoints: Every rank writes its part, and a checkpoint is a folder; otherwise the first
            rank gathers everything and writes one file, which takes its host that much memory.
        timeout: How long a rank waits for the others before the run ends, as ``0:10:00``; longer than the
            slowest step, validation or checkpoint of any rank.
    """

    def __init__(
        self,
        *,
        compute: Literal["bfloat16"] | None = None,
        cpu_offload: bool = False,
        sharded_checkpoints: bool = True,
        timeout: timedelta = timedelta(minutes=30),  # noqa: B008 - it cannot be changed
    ) -> None:
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=sharded_checkpoints, timeout=timeout
        )
        self.compute = None if compute is None else torch.bfloat16
        self.cpu_offload = cpu_offload

    def setup_environment(self) -> None:
        """Make one data-parallel group of everything; norms of offloaded gradients are summed over gloo."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        if self.cpu_offload and self.root_device.type == "cuda":
            self._process_group_backend = "cpu:gloo,cuda:nccl"
        super().setup_environment()

    def shard(self, policy: GenerativeRMPolicy) -> None:
        """Shard a policy once; a policy that is sharded already stays as it is."""
        if not isinstance(policy, FSDPModule):
            shard(
                policy,
                self.device_mesh["data_parallel"],
                compute=self.compute,
                cpu_offload=self.cpu_offload,
            )

    def model_to_device(self) -> None:
        """Move what is not sharded; offloaded weights stay with the host."""
        assert self.model is not None
        if self.cpu_offload:
            device = self.root_device
            self.model._apply(lambda tensor: tensor if isinstance(tensor, DTensor) else tensor.to(device))
        else:
            super().model_to_device()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; a folder appears under its name when all ranks have written their part."""
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        final = Path(self.broadcast(filepath))
        partial = final.with_name(f".{final.name}.partial")
        if self.is_global_zero:
            shutil.rmtree(partial, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, partial, storage_options)
        self.barrier()
        if self.is_global_zero:
            if final.is_dir():
                shutil.rmtree(final)
            partial.replace(final)
        self.barrier()


def shard(
    policy: GenerativeRMPolicy,
    mesh: DeviceMesh,
    *,
    compute: torch.dtype | None = None,
    cpu_offload: bool = False,
) -> None:
    """Shard a policy in place.

    Each decoder layer of the language model is a unit that is gathered when it runs. All the rest
    (embeddings, head, vision tower, projector) is one unit that stays gathered from ``logprobs`` to the end
    of its backward, so that a rank whose micro-batch has no pictures still takes part in all that others do.

    Args:
        policy: Its weights are in memory, the same on all ranks, and it is known which of them train.
        mesh: One dimension.
        compute: The model computes in this type.
        cpu_offload: Keep the parts in host memory.
    """
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if cpu_offload else OffloadPolicy()
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32),
        "offload_policy": offload,
    }
    for layer in policy.layers():
        fully_shard(layer, reshard_after_forward=True, **options)
    trains = any(parameter.requires_grad for parameter in policy.parameters())
    fully_shard(policy, reshard_after_forward=not trains, **options)
    policy.compute = compute
    for method in ("logprobs", "see"):  # the policy has no `forward`; these run it, and gather the rest
        register_fsdp_forward_method(policy, method)


@contextlib.contextmanager
def gathered(policy: GenerativeRMPolicy) -> Iterator[None]:
    """Hold all weights of a sharded policy on every rank for a while; of any other policy, do nothing.

    Inside, a forward pass talks to no other rank: ranks may sample as long as each needs. Otherwise every
    token would gather the model once, and ranks that finish early would leave the others waiting for ever.
    """
    units = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    if not units:
        yield
        return
    root, layers = units[0], units[1:]
    root._get_fsdp_state()._lazy_init()  # the unit that runs first becomes the root: it must not be a layer
    for unit in units:
        unit.unshard()
    for layer in layers:
        layer.set_reshard_after_forward(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_reshard_after_forward(True)
        for unit in units:
            unit.reshard()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor is itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor (a norm, say) as every rank sees it; any other tensor is itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
