"""Which groups a step learns from, and those that wait for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_msrl.losses.base import RLVRLoss
from lit_msrl.policy import PromptBatch
from lit_msrl.rollout import Lesson, Rollout


def teaching(rollout: Rollout, loss: RLVRLoss) -> Tensor:
    """Whether any completion of a group counts and has an advantage, ``(P,)``."""
    counted = loss.counted(rollout.completion_mask, rollout.truncated).any(dim=1)
    return (counted & (rollout.advantages != 0)).view(-1, rollout.group_size).any(dim=1)


def first(teaches: Tensor, wanted: int) -> Tensor:
    """The first ``wanted`` groups that teach, in the order of the global batch, ``(ranks, P)``.

    Example:
        >>> first(torch.tensor([[True, False, True], [True, True, True]]), wanted=3).int()
        tensor([[1, 0, 1],
                [1, 0, 0]], dtype=torch.int32)
    """
    return teaches & (teaches.flatten().cumsum(0).view_as(teaches) <= wanted)


def select(rollout: Rollout, chosen: Tensor, rank: int, loss: RLVRLoss, max_length: int) -> Lesson:
    """This rank's chosen groups, followed by blank ones until it has as many as any other rank.

    A blank group has no token that counts: it is there so that all ranks go through equally many backwards.
    Where nothing is chosen at all, the first group of all is: a step without a lesson is a step all the same.

    Args:
        rollout: The groups to choose from.
        chosen: ``(ranks, P)``.
        rank: Which of them this is.
        loss: Whose normalizer is meant.
        max_length: The longest completion that could have been sampled.

    Returns:
        Groups whose ``normalizer`` and ``tokens`` are those of this rank's chosen ones alone.
    """
    if not chosen.any():
        chosen = torch.arange(chosen.numel(), device=chosen.device).view_as(chosen) == 0
    mine = chosen[rank]
    size = int(chosen.sum(dim=1).max())
    groups = (~mine).int().argsort(stable=True)[:size].tolist()
    lesson = rollout.pick(groups, rollout.batch.pick(groups))
    real = mine[groups].repeat_interleave(rollout.group_size)  # (b,)
    counted = loss.counted(lesson.completion_mask, lesson.truncated)
    mask = lesson.completion_mask & real[:, None]
    normalizer = loss.normalizer(counted[real], max_length)
    return replace(lesson, completion_mask=mask, normalizer=normalizer, tokens=mask.sum().float())


class Pool:
    """Chooses what is learned from, and keeps what has to wait for a step.

    A group that teaches nothing is left out, if to the loss it means nothing. With ``max_rounds`` above 1 it
    is also replaced: batches are sampled until as many groups teach as one batch holds. They are taken in the
    order of the rounds and, within one, of the global batch. What exceeds a step opens the next one; there it
    is one policy update old, and its ``old_logprobs`` say so.

    Args:
        loss: Which groups teach, and its normalizer.
        max_length: The longest completion that could have been sampled.
        max_rounds: Batches sampled for a step at most.

    Attributes:
        waiting: This rank's groups that wait, oldest first.
        groups: How many there are on all ranks, blank ones not counted.
        rounds: How often was sampled since the last step.

    Raises:
        ValueError: ``max_rounds`` is below 1.
    """

    def __init__(self, loss: RLVRLoss, max_length: int, max_rounds: int) -> None:
        if max_rounds < 1:
            raise ValueError(f"model.max_rounds is {max_rounds}; it must be at least 1")
        self.loss, self.max_length, self.max_rounds = loss, max_length, max_rounds
        self._empty()

    def _empty(self) -> None:
        self.waiting: list[Lesson] = []
        self.groups = self.rounds = 0

    def lessons(
        self, rollout: Rollout, trainer: Trainer, old_logprobs: Callable[[Lesson], Tensor]
    ) -> list[Lesson]:
        """What is learned from now; empty if more is to be sampled first.

        On every rank of the same size, so that all go through the same number of micro-batches.

        Args:
            rollout: What was just sampled.
            trainer: Reaches the other ranks.
            old_logprobs: Of what is kept for the next step, under the policy as it is now.
        """
        mine = teaching(rollout, self.loss).int()
        teaches = torch.as_tensor(trainer.strategy.all_gather(mine)).view(-1, len(mine)).bool()  # (ranks, P)
        if self.max_rounds == 1:
            chosen = torch.ones_like(teaches) if self.loss.needs_all_groups else teaches
            lesson = self._select(rollout, chosen, trainer)
            return _of_one_step([lesson], trainer, normalizer=rollout.normalizer)
        wanted = teaches.numel()
        now = first(teaches, wanted - self.groups)
        self.groups, self.rounds = self.groups + int(now.sum()), self.rounds + 1
        due = self.groups == wanted or self.rounds == self.max_rounds
        if now.any() or (due and not self.waiting):
            self.waiting.append(self._select(rollout, now, trainer))
        if not due:
            return []
        lessons = _of_one_step([lesson.to(now.device) for lesson in self.waiting], trainer)
        self._empty()
        later = teaches & ~now
        if later.any():
            lesson = self._select(rollout, later, trainer)
            self.waiting = [replace(lesson, old_logprobs=old_logprobs(lesson))]
            self.groups = int(later.sum())
        return lessons

    def _select(self, rollout: Rollout, chosen: Tensor, trainer: Trainer) -> Lesson:
        return select(rollout, chosen, trainer.global_rank, self.loss, self.max_length)

    def state_dict(self, trainer: Trainer) -> list[dict[str, Any]]:
        """What waits on each rank, in what ``weights_only`` can load."""
        lessons = [lesson.to(torch.device("cpu")) for lesson in self.waiting]
        plain = [vars(lesson) | {"batch": dict(vars(lesson.batch))} for lesson in lessons]
        mine = {"waiting": plain, "groups": self.groups, "rounds": self.rounds}
        states = [mine] * trainer.world_size
        if torch.distributed.is_initialized():
            torch.distributed.all_gather_object(states, mine)
        return states

    def load_state_dict(self, states: list[dict[str, Any]], trainer: Trainer) -> None:
        """Go on as saved.

        Raises:
            ValueError: Groups wait on another number of ranks.
        """
        self._empty()
        if any(state["rounds"] or state["groups"] for state in states):
            if len(states) != trainer.world_size:
                raise ValueError(
                    f"the checkpoint holds groups that wait on {len(states)} ranks to be learned from; "
                    f"resume on as many, not on {trainer.world_size}"
                )
            state = states[trainer.global_rank]
            self.waiting = [
                Lesson(**(plain | {"batch": PromptBatch(**plain["batch"])})) for plain in state["waiting"]
            ]
            self.groups, self.rounds = state["groups"], state["rounds"]


def _of_one_step(lessons: list[Lesson], trainer: Trainer, normalizer: Tensor | None = None) -> list[Lesson]:
    """Lessons that know the totals of their step, over all ranks; by default the normalizer is theirs."""
    sizes = torch.stack([torch.stack([each.normalizer.float(), each.step_tokens]) for each in lessons])
    total, tokens = torch.as_tensor(trainer.strategy.reduce(sizes.sum(dim=0), reduce_op="sum"))
    normalizer = total if normalizer is None else normalizer
    return [replace(each, normalizer=normalizer, tokens=tokens) for each in lessons]
