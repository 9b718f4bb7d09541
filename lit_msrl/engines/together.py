"""Ranks that run one vLLM together: each holds a slice of its weights, all ask for the same completions."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from datetime import timedelta
from itertools import chain
from typing import TypeVar

import torch.distributed as dist

from lit_msrl.engines.base import Completions
from lit_msrl.prompts import JudgingPrompt

T = TypeVar("T")


class Together:
    """So many adjacent ranks, this one among them; all ranks of the run make it at the same time.

    Args:
        size: How many; 1 for a rank that has a vLLM of its own.
        timeout: Seconds for which they wait for each other.

    Raises:
        ValueError: The run has not as many ranks, or not a multiple of it, or they are on several machines.
    """

    def __init__(self, size: int, timeout: float) -> None:
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        if size < 1 or ranks % size:
            raise ValueError(
                f"the engine's tensor_parallel={size} does not divide the {ranks} processes of this run; set "
                "trainer.devices to a multiple of it"
            )
        self.place = dist.get_rank() % size if size > 1 else 0
        self.size, self.group = size, None
        if size > 1:
            wait = timedelta(seconds=timeout)
            self.group = dist.new_subgroups(size, backend="gloo", timeout=wait)[0]
        machines = sorted(set(self.gather(socket.gethostname())))
        if len(machines) > 1:
            raise ValueError(
                f"the engine's tensor_parallel={size} puts one vLLM on {' and '.join(machines)}; it must "
                "divide the processes of each machine"
            )

    def gather(self, one: T) -> list[T]:
        """What each of them has, in the order of ranks."""
        if self.group is None:
            return [one]
        found: list[T] = [one] * self.size
        dist.all_gather_object(found, one, group=self.group)
        return found

    def prompts(self, own: Sequence[JudgingPrompt]) -> tuple[list[JudgingPrompt], int]:
        """The prompts of all, and where in them this rank's begin."""
        each = self.gather(list(own))
        return list(chain.from_iterable(each)), sum(map(len, each[: self.place]))


def own(drawn: Completions, first: int, count: int) -> Completions:
    """Some of the completions that were drawn, no wider than they need to be."""
    mask = drawn.mask[first : first + count]
    width = int(mask.sum(dim=1).max())
    return Completions(*(t[first : first + count, :width] for t in (drawn.ids, drawn.mask, drawn.logprobs)))
