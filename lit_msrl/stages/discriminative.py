"""The paper's discriminative baseline: a scalar per candidate instead of a written judgement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from lit_msrl.backbones import Part
from lit_msrl.budget import Budget, candidate_turns
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import View, render_candidate
from lit_msrl.records import JudgementRecord
from lit_msrl.stages.base import StageModule
from lit_msrl.strategies import FSDP2
from lit_msrl.types import PreferenceExample


class DiscriminativeRM(StageModule):
    """A reward model that reads one candidate at a time and says a number, ``r(x, y)``.

    The score is a linear map of the language model's state at the last prompt token. It is trained on
    preferences alone, by the Bradley-Terry loss ``-log sigmoid(r(x, y_w) - r(x, y_l))`` (arXiv:1706.03741).

    Args:
        policy: The vision-language model under the head.
        learning_rates: Learning rate of each part that trains (``language``, ``projector``, ``vision``).
        optimizer: Builds the optimizer, e.g. ``torch.optim.AdamW``; its own ``lr`` is overridden per part.
        head_learning_rate: Learning rate of the head, which starts at zero.
        warmup_steps: Optimizer steps over which learning rates rise linearly.
        cosine: Let learning rates fall to zero along a cosine over ``trainer.max_steps``.
        view: Show evidence as ``caption`` or as pixels (``visual``).
        seed: Unused; nothing is sampled.
    """

    name = "discriminative"

    def __init__(
        self,
        policy: GenerativeRMPolicy,
        learning_rates: dict[Part, float],
        optimizer: OptimizerCallable,
        *,
        head_learning_rate: float = 1e-3,
        warmup_steps: int = 0,
        cosine: bool = False,
        view: View = "visual",
        seed: int = 0,
    ) -> None:
        super().__init__(
            policy, learning_rates, optimizer, warmup_steps=warmup_steps, cosine=cosine, view=view, seed=seed
        )
        self.head_learning_rate = head_learning_rate
        self.score_head = nn.Linear(policy.head.in_features, 1, bias=False)
        nn.init.zeros_(self.score_head.weight)

    def budget(self) -> Budget:
        """What fits: one candidate at a time."""
        return Budget(self.policy, candidate_turns(self.view), self.policy.max_length)

    @classmethod
    def load(cls, policy: GenerativeRMPolicy, checkpoint: Path) -> DiscriminativeRM:
        """The model of a checkpoint, to judge with.

        Args:
            policy: One of the same architecture; its weights are replaced.
            checkpoint: Of this stage.
        """
        model = cls(policy, {}, torch.optim.AdamW)
        model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
        return model

    def configure_model(self) -> None:
        """Refuse to be sharded: the score does not go through ``policy.logprobs``, which gathers weights.

        Raises:
            ValueError: The strategy is FSDP2.
        """
        if isinstance(self.trainer.strategy, FSDP2):
            raise ValueError(
                "the discriminative baseline cannot be sharded; use the trainer configuration ddp"
            )
        super().configure_model()

    def scores(self, examples: Sequence[PreferenceExample]) -> Tensor:
        """``(B, 2)``: the score of candidate 1 and of candidate 2."""
        turns = [render_candidate(e, candidate, view=self.view) for e in examples for candidate in (1, 2)]
        names = [e.id for e in examples for _ in range(2)]
        hidden = self.policy.read(self.policy.encode_turns(turns, names)).hidden  # (2 B, D)
        return self.score_head(hidden.to(self.score_head.weight.dtype)).view(-1, 2)

    def training_step(self, batch: list[PreferenceExample], batch_idx: int) -> Tensor:
        """The Bradley-Terry loss of a batch."""
        margin = self._margin(batch)
        loss = -logsigmoid(margin).mean()
        self.log("discriminative/loss", loss.detach(), prog_bar=True, batch_size=len(batch), sync_dist=True)
        self.log("discriminative/margin", margin.detach().mean(), batch_size=len(batch), sync_dist=True)
        return loss

    def validation_step(self, batch: list[PreferenceExample], batch_idx: int) -> None:
        """Whether the better candidate scores higher."""
        self.validation_accuracy.update(self._margin(batch) > 0, [example.task_type for example in batch])

    @torch.no_grad()
    def judge(self, examples: Sequence[PreferenceExample], batch_size: int = 32) -> Iterator[JudgementRecord]:
        """Verdicts as records, in both orders: a model that never sees the order agrees with itself.

        Args:
            examples: With a winner and decoded media.
            batch_size: Examples at a time.
        """
        self.eval()
        for start in range(0, len(examples), batch_size):
            batch = examples[start : start + batch_size]
            for example, (first, second) in zip(batch, self.scores(batch).tolist(), strict=True):
                for order in ("AB", "BA"):
                    yield JudgementRecord(
                        id=example.id,
                        task_type=example.task_type,
                        order=order,
                        sample=0,
                        winner=_winner(example),
                        preferred=1 if first > second else 2 if second > first else None,
                        well_formed=True,
                        confidence=float(torch.tensor(abs(first - second)).sigmoid()),
                        text=f"{first:.4f} {second:.4f}",
                    )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The parts' groups, and the head's."""
        head = {"params": [self.score_head.weight], "lr": self.head_learning_rate, "name": "head"}
        return [*super().parameter_groups(), head]

    def _margin(self, examples: Sequence[PreferenceExample]) -> Tensor:
        """``(B,)``: score of the better candidate less that of the other."""
        scores = self.scores(examples)
        sign = torch.tensor([1.0 if _winner(e) == 1 else -1.0 for e in examples], device=scores.device)
        return sign * (scores[:, 0] - scores[:, 1])


def _winner(example: PreferenceExample) -> Any:
    if example.winner == "tie":
        raise ValueError(
            f"example {example.id!r} of {example.source!r} is a tie; a Bradley-Terry model needs a winner"
        )
    return example.winner
