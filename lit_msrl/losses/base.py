"""What every RLVR loss is: a callable for the algorithm, a callback for what outlives a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_msrl import functional as F
from lit_msrl.rollout import Lesson


class LossOutput(NamedTuple):
    """The loss of a micro-batch.

    Attributes:
        loss: Scalar; those of a step's micro-batches add up to the loss of the step.
        metrics: Scalars by log key, without gradient; they add up in the same way.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class RLVRLoss(Callback, ABC):
    """Turns rewards into credit and credit into a loss.

    Configured at ``model.loss``; the module attaches it to the trainer, so that a loss may override hooks (to
    anneal a coefficient, say) and ``state_dict`` (to find it again on resume). A new loss is one new file: a
    subclass that overrides ``__call__``, or one of ``PolicyGradientLoss`` that overrides ``surrogate``.
    """

    @property
    def needs_reference(self) -> bool:
        """Whether ``lesson.ref_logprobs`` must be there."""
        return False

    @property
    def needs_all_groups(self) -> bool:
        """Whether a group in which no completion has an advantage has a gradient; if not it is skipped."""
        return True

    @property
    def corrects_sampler(self) -> bool:
        """Whether completions are weighed by ``lesson.sampler_logprobs``."""
        return False

    def advantages(self, rewards: Tensor, group_size: int) -> Tensor:
        """Credit per completion.

        Args:
            rewards: ``(B,)`` of the whole step, over all ranks; the completions of a prompt adjacent.
            group_size: ``G``.

        Returns:
            ``(B,)``; by default the reward less its group's mean.
        """
        return F.group_advantages(rewards, group_size)

    def counted(self, completion_mask: Tensor, truncated: Tensor) -> Tensor:
        """Which tokens the loss counts.

        Args:
            completion_mask: ``(B, T)``.
            truncated: ``(B,)``, completions that were cut off.

        Returns:
            ``(B, T)``; by default all completion tokens.
        """
        return completion_mask

    def normalizer(self, mask: Tensor, max_length: int) -> Tensor:
        """What the loss of a step is divided by; add it up over ranks.

        Args:
            mask: ``(B, T)`` of the whole step, as ``counted`` says.
            max_length: The longest completion that could have been sampled.

        Returns:
            Scalar; by default the tokens of the step.
        """
        return F.normalizer(mask, "token", max_length)

    @abstractmethod
    def __call__(self, logprobs: Tensor, lesson: Lesson, entropy: Tensor | None = None) -> LossOutput:
        """The loss of a micro-batch.

        Args:
            logprobs: ``(b, T)`` of the completion tokens under the policy, with gradient.
            lesson: The micro-batch, one of ``Lesson.micro_batches``.
            entropy: ``(b, T)`` of the distributions the tokens were drawn from, with gradient.
        """

    def adapt(self, metrics: Mapping[str, Tensor]) -> None:
        """Take note of the metrics of the step just taken; what changes belongs in ``state_dict``."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to run as a callback that nobody calls.

        Raises:
            ValueError: This loss is in ``trainer.callbacks`` and not at ``model.loss``.
        """
        if vars(pl_module).get("loss") is not self:
            raise ValueError(f"configure {type(self).__name__} at `model.loss`, not in `trainer.callbacks`")
