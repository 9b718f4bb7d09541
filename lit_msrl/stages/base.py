"""What all stages share: the policy, which of its parts learn and how fast, showing examples, validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from transformers import set_seed

from lit_msrl.backbones import Part
from lit_msrl.budget import Budget, judging_turns
from lit_msrl.engines import Completions, HFEngine, RolloutEngine, Sampling
from lit_msrl.metrics import PreferenceAccuracy
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import Judgement, JudgingPrompt, Style, View, parse, render
from lit_msrl.strategies import FSDP2
from lit_msrl.types import PreferenceExample


class StageModule(L.LightningModule):
    """A training stage of a generative reward model.

    Args:
        policy: The judge.
        learning_rates: Learning rate of each part that trains (``language``, ``projector``, ``vision``); the
            rest is frozen.
        optimizer: Builds the optimizer, e.g. ``torch.optim.AdamW``; its own ``lr`` is overridden per part.
        warmup_steps: Optimizer steps over which learning rates rise linearly.
        cosine: Let learning rates fall to zero along a cosine over ``trainer.max_steps``; else they stay.
        view: Show evidence as ``caption`` or as pixels (``visual``).
        style: Prompt wording, ``full`` (the paper's) or ``compact`` (for tiny models).
        engine: What samples completions.
        max_completion: Longest completion in tokens.
        seed: Seed of all sampling.
    """

    name: str

    def __init__(
        self,
        policy: GenerativeRMPolicy,
        learning_rates: dict[Part, float],
        optimizer: OptimizerCallable,
        *,
        warmup_steps: int = 0,
        cosine: bool = False,
        view: View = "visual",
        style: Style = "full",
        engine: RolloutEngine | None = None,
        max_completion: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.learning_rates = learning_rates
        self.optimizer = optimizer
        self.warmup_steps, self.cosine = warmup_steps, cosine
        self.view: View = view
        self.style: Style = style
        self.engine = engine or HFEngine()
        self.max_completion, self.seed = max_completion, seed
        self.validation_accuracy = PreferenceAccuracy()
        policy.train()  # transformers hands models out in eval mode, in which gradient checkpointing is off
        policy.train_only(list(learning_rates))
        self.strict_loading = not policy.adapted  # what an adapter-only checkpoint lacks is the base model's

    def setup(self, stage: str) -> None:
        """Tell the data how much of an example the policy can read."""
        if self.trainer.datamodule is not None:  # type: ignore[attr-defined]
            self.trainer.datamodule.budget = self.budget()  # type: ignore[attr-defined]

    def budget(self) -> Budget:
        """What fits: a prompt in this stage's views that leaves room for the longest completion.

        Raises:
            ValueError: The longest completion leaves no room.
        """
        limit = self.policy.max_length - self.max_completion
        if limit < 1:
            raise ValueError(
                f"max_completion {self.max_completion} leaves no room for a prompt in"
                f" model.policy.max_length={self.policy.max_length}"
            )
        return Budget(self.policy, judging_turns(self.shown_views, self.style), limit)

    @property
    def shown_views(self) -> list[View]:
        """The views in which examples are shown."""
        return [self.view]

    # ---- examples to judgements ----------------------------------------------------------------------------

    def show(self, examples: Sequence[PreferenceExample]) -> list[JudgingPrompt]:
        """Examples as this stage shows them."""
        return [render(example, view=self.view, style=self.style) for example in examples]

    def sample(self, prompts: Sequence[JudgingPrompt], sampling: Sampling, *, salt: int = 0) -> Completions:
        """Completions, a function of weights, prompts, seed and step alone: a resumed run repeats them."""
        batch, seed = self.policy.encode(prompts), self.sampling_seed(salt)
        return self.engine.generate(self.policy, prompts, batch, sampling=sampling, seed=seed)

    def sampling_seed(self, salt: int = 0) -> int:
        """A seed of its own for every step, rank and salt."""
        return hash((self.seed, self.trainer.global_step, self.trainer.global_rank, salt)) % 2**62

    def read(self, completions: Completions, prompts: Sequence[JudgingPrompt]) -> list[Judgement]:
        """Completions, one per prompt, parsed."""
        texts = self.policy.decode(completions.ids, completions.mask)
        return [parse(text, prompt.tags) for text, prompt in zip(texts, prompts, strict=True)]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed Python's, numpy's and torch's generators (dropout, say) as a function of the step and rank."""
        set_seed(hash((self.seed, self.trainer.global_step, self.trainer.global_rank)) % 2**32)

    # ---- validation ----------------------------------------------------------------------------------------

    def validation_step(self, batch: list[PreferenceExample], batch_idx: int) -> None:
        """Greedy verdicts against labels."""
        prompts = self.show(batch)
        judgements = self.read(self.sample(prompts, Sampling(1, self.max_completion, 0.0)), prompts)
        correct = torch.tensor(
            [j.answer == p.label for j, p in zip(judgements, prompts, strict=True)], device=self.device
        )
        self.validation_accuracy.update(correct, [prompt.task_type for prompt in prompts])
        formed = sum(j.well_formed for j in judgements) / len(judgements)
        self.log("validation/format", formed, batch_size=len(batch), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log accuracy, all and per task."""
        scores = self.validation_accuracy.compute()
        self.validation_accuracy.reset()
        self.log_dict({f"validation/{name}": value for name, value in scores.items()})

    # ---- optimisation --------------------------------------------------------------------------------------

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is optimised: one group per part, with its learning rate."""
        parts = self.policy.parts()
        return [
            {"params": [p for _, p in parts[part]], "lr": rate, "name": part}
            for part, rate in self.learning_rates.items()
        ]

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedule of the learning rates."""
        optimizer = self.optimizer(self.parameter_groups())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        if not self.cosine or self.trainer.max_steps < 1:
            return warm
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.trainer.max_steps)))

    # ---- devices -------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Shard the policy where the strategy asks for it.

        Raises:
            ValueError: 4-bit weights and several devices.
        """
        if self.policy.quantized and self.trainer.world_size > 1:
            raise ValueError(
                f"4-bit weights run on one device, not on {self.trainer.world_size}; "
                "use trainer.devices=1, or LoRA without quantization"
            )
        if isinstance(self.trainer.strategy, FSDP2):
            self.trainer.strategy.shard(self.policy)

    # ---- checkpoints ---------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """All weights; with adapters, of the policy only those that differ from the base model's."""
        weights = super().state_dict(*args, **kwargs)
        if not self.policy.adapted:
            return weights
        own = {f"policy.{name}" for name in self.policy.departed}
        return {name: t for name, t in weights.items() if name in own or not name.startswith("policy.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which stage this is."""
        checkpoint["stage"] = self.name

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume from another stage, or without all adapters.

        Raises:
            ValueError: The checkpoint belongs to another stage or another model.
        """
        found = checkpoint.get("stage")
        if found != self.name:
            raise ValueError(
                f"the checkpoint is of stage {found!r}, this is {self.name!r}; "
                "to start from another stage's weights use --start_from, not --ckpt_path"
            )
        weights = checkpoint.get("state_dict")  # FSDP2 has read, and compared, them by now
        missing = set() if weights is None else self.state_dict().keys() - weights.keys()
        if missing:
            raise ValueError(f"the checkpoint lacks {len(missing)} weights that train, e.g. {min(missing)}")
