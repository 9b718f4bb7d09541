"""Stage 2b, CMKD: what the judge concludes from captions, taught to it from pixels (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from tqdm import tqdm

from lit_msrl.backbones import Part
from lit_msrl.distill import select
from lit_msrl.engines import RolloutEngine, Sampling
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import JudgingPrompt, Style, View, parse, render, write
from lit_msrl.stages.sft import SFTModule
from lit_msrl.types import PreferenceExample


class CMKD(SFTModule):
    """Cross-modal knowledge distillation; needs captions, no labels.

    Before training, the policy as it comes from stage 2a judges every training example from its captions,
    ``samples`` times; vote, format filter and confidence choose one judgement (`distill.select`). Training
    then shows the pictures and asks for the caption and that judgement's reasoning and verdict.

    Args:
        policy: The judge, as stage 2a left it.
        learning_rates: Learning rate of each part that trains (``language``, ``projector``, ``vision``).
        optimizer: Builds the optimizer, e.g. ``torch.optim.AdamW``.
        samples: Judgements per example, ``n``.
        temperature: Of sampling them.
        warmup_steps: Optimizer steps over which learning rates rise linearly.
        cosine: Let learning rates fall to zero along a cosine over ``trainer.max_steps``.
        style: Prompt wording, ``full`` (the paper's) or ``compact`` (for tiny models).
        engine: What samples completions.
        max_completion: Longest completion in tokens.
        seed: Seed of all sampling.
    """

    name = "cmkd"

    def __init__(
        self,
        policy: GenerativeRMPolicy,
        learning_rates: dict[Part, float],
        optimizer: OptimizerCallable,
        *,
        samples: int = 8,
        temperature: float = 1.0,
        warmup_steps: int = 0,
        cosine: bool = False,
        style: Style = "full",
        engine: RolloutEngine | None = None,
        max_completion: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__(
            policy,
            learning_rates,
            optimizer,
            warmup_steps=warmup_steps,
            cosine=cosine,
            view="visual",
            style=style,
            engine=engine,
            max_completion=max_completion,
            seed=seed,
        )
        self.sampling = Sampling(samples, max_completion, temperature)
        self.traces: dict[str, tuple[str, str] | None] = {}

    @property
    def shown_views(self) -> list[View]:
        """Captions are judged, pictures are shown."""
        return ["caption", "visual"]

    def on_fit_start(self) -> None:
        """Judge the training examples from their captions, unless a checkpoint brought the traces along."""
        if self.traces:
            return
        loader = self.trainer.datamodule.distillation_batches()  # type: ignore[attr-defined]
        with self.trainer.precision_plugin.forward_context():  # as in a step
            for step, batch in enumerate(tqdm(loader, desc="CMKD: judging captions", leave=False)):
                self.traces |= self.distil(list(batch), salt=step)
        if torch.distributed.is_initialized():
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, self.traces)
            self.traces = {name: trace for traces in gathered for name, trace in traces.items()}
        kept = sum(trace is not None for trace in self.traces.values())
        if not kept:
            raise ValueError(
                f"CMKD: none of {len(self.traces)} examples has an agreed, well-formed judgement of its "
                "captions; start from a stage 2 that judges captions"
            )
        print(
            f"CMKD: {kept} of {len(self.traces)} examples distilled, "
            f"{len(self.traces) - kept} dropped (no agreed, well-formed judgement)"
        )

    @torch.no_grad()
    def distil(self, examples: list[PreferenceExample], *, salt: int) -> dict[str, tuple[str, str] | None]:
        """For each example the chosen reasoning and verdict, in the shown order; ``None`` if dropped."""
        prompts = [render(example, view="caption", style=self.style) for example in examples]
        drawn = self.sample(prompts, self.sampling, salt=salt)
        texts = self.policy.decode(drawn.ids, drawn.mask)
        confidence = (drawn.logprobs.sum(1) / drawn.mask.sum(1)).tolist()
        n = self.sampling.group_size
        traces: dict[str, tuple[str, str] | None] = {}
        for i, prompt in enumerate(prompts):
            rows = slice(i * n, (i + 1) * n)
            judgements = [parse(text, prompt.tags) for text in texts[rows]]
            best = select(judgements, confidence[rows])
            sections = {} if best is None else judgements[best].sections
            traces[prompt.example.id] = (sections["think"], sections["answer"]) if sections else None
        return traces

    def targets(self, prompts: Iterable[JudgingPrompt]) -> list[str]:
        """The caption, and the distilled reasoning and verdict."""
        return [
            write(prompt, think=think, answer=answer)
            for prompt in prompts
            for think, answer in [self._trace(prompt)]
        ]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """The loss of the examples that have a trace; no step if no rank has one."""
        kept = [example for example in batch if self.traces.get(example.id)]
        self.log("cmkd/kept", len(kept) / len(batch), batch_size=len(batch), sync_dist=True)
        most = self.trainer.strategy.reduce(torch.tensor(len(kept), device=self.device), reduce_op="max")
        if not most:
            return None
        if kept:
            return super().training_step(kept, batch_idx)
        return self.imitate(self.show(batch[:1]), [""], weight=0.0)  # the other ranks wait for this one

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the traces: a resumed run must not judge again."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["traces"] = self.traces

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Bring the traces back."""
        super().on_load_checkpoint(checkpoint)
        self.traces = checkpoint["traces"]

    def _trace(self, prompt: JudgingPrompt) -> tuple[str, str]:
        trace = self.traces[prompt.example.id]
        assert trace is not None
        return trace
