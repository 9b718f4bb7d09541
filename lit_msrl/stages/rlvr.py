"""Reinforcement learning with verifiable rewards."""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from lit_msrl.backbones import Part
from lit_msrl.engines import RolloutEngine, Sampling
from lit_msrl.losses.base import RLVRLoss
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import Style, View
from lit_msrl.rewards import RewardSum
from lit_msrl.rollout import Rollout
from lit_msrl.stages.base import StageModule
from lit_msrl.types import PreferenceExample


class RLVRModule(StageModule):
    """Sample, score, credit, descend: one batch of prompts is one rollout is one optimizer step.

    Args:
        policy: The judge.
        learning_rates: Learning rate of each part that trains (``language``, ``projector``, ``vision``).
        optimizer: Builds the optimizer, e.g. ``torch.optim.AdamW``.
        loss: The RLVR loss, a Lightning callback, e.g. ``GRPOLoss``.
        reward: Weights of the rewards.
        group_size: Completions per prompt, ``G`` (paper: 8).
        temperature: Of sampling (paper: 1).
        micro_batch_size: Prompts per forward and backward; changes memory, not the gradient.
        num_iterations: Optimizer steps per rollout, ``mu``.
        max_grad_norm: The gradient is scaled down to this norm.
        warmup_steps: Optimizer steps over which learning rates rise linearly.
        cosine: Let learning rates fall to zero along a cosine over ``trainer.max_steps``.
        view: Show evidence as ``caption`` or as pixels (``visual``).
        style: Prompt wording, ``full`` (the paper's) or ``compact`` (for tiny models).
        engine: What samples completions.
        max_completion: Longest completion in tokens (public scripts: 1024).
        seed: Seed of all sampling.
    """

    def __init__(
        self,
        policy: GenerativeRMPolicy,
        learning_rates: dict[Part, float],
        optimizer: OptimizerCallable,
        loss: RLVRLoss,
        reward: RewardSum | None = None,
        *,
        group_size: int = 8,
        temperature: float = 1.0,
        micro_batch_size: int = 8,
        num_iterations: int = 1,
        max_grad_norm: float = 1.0,
        warmup_steps: int = 0,
        cosine: bool = False,
        view: View = "visual",
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
            view=view,
            style=style,
            engine=engine,
            max_completion=max_completion,
            seed=seed,
        )
        self.automatic_optimization = False
        self.loss = loss
        self.reward = reward or RewardSum()
        self.sampling = Sampling(group_size, max_completion, temperature)
        self.micro_batch_size, self.num_iterations = micro_batch_size, num_iterations
        self.max_grad_norm = max_grad_norm
        self.reference: list[GenerativeRMPolicy] = []  # in a list, so that it is no part of the checkpoint

    def configure_callbacks(self) -> list[Callback]:
        """The loss lives through the run as a callback."""
        return [self.loss]

    def setup(self, stage: str) -> None:
        """Keep the policy as it starts, if the loss compares with it."""
        if stage == "fit" and self.loss.needs_reference and not self.policy.adapted:
            self.reference = [copy.deepcopy(self.policy).requires_grad_(False)]

    def training_step(self, batch: list[PreferenceExample], batch_idx: int) -> None:
        """One step of the algorithm."""
        start = time.perf_counter()
        rollout = self.rollout(batch)
        sampled = time.perf_counter()
        for _ in range(self.num_iterations):
            metrics: dict[str, Tensor] = {}
            for group_batch in rollout.micro_batches(self.micro_batch_size):
                logprobs, entropy = self.logprobs(group_batch)
                loss, parts = self.loss(logprobs, group_batch)
                self.manual_backward(
                    self._reaching_all(loss, group_batch) * self.trainer.world_size
                )  # ranks are averaged
                parts |= {"rlvr/loss": loss.detach(), "rlvr/entropy": entropy.sum() / group_batch.step_tokens}
                metrics = {key: metrics.get(key, 0.0) + value for key, value in parts.items()}
            metrics["rlvr/gradient_norm"] = self.descend()
        self.watch(rollout, metrics)
        self.log("time/sample", sampled - start)
        self.log("time/learn", time.perf_counter() - sampled)

    @torch.no_grad()
    def rollout(self, examples: list[PreferenceExample]) -> Rollout:
        """Sample a group per prompt, score it, give credit."""
        prompts = self.show(examples)
        batch = self.policy.encode(prompts)
        seed = hash((self.seed, self.trainer.global_step, self.trainer.global_rank)) % 2**62
        completions = self.engine.generate(self.policy, prompts, batch, sampling=self.sampling, seed=seed)
        texts = self.policy.decode(completions.ids, completions.mask)
        judgements = self.reward.read(texts, prompts)
        rewards, parts = self.reward(judgements, prompts)
        rewards = rewards.to(self.device)
        size = self.loss.normalizer(completions.mask, self.sampling.max_length)
        rollout = Rollout(
            prompts=prompts,
            batch=batch,
            completion_ids=completions.ids,
            completion_mask=completions.mask,
            group_size=self.sampling.group_size,
            texts=texts,
            judgements=judgements,
            rewards=rewards,
            reward_parts=parts,
            advantages=self.loss.advantages(rewards, self.sampling.group_size),
            normalizer=self.trainer.strategy.reduce(size, reduce_op="sum"),
            tokens=self.trainer.strategy.reduce(completions.mask.sum().float(), reduce_op="sum"),
        )
        return self._with_logprobs(rollout)

    def logprobs(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of the completions under the policy, ``(b, T)`` each."""
        return self.policy.logprobs(
            rollout.batch,
            rollout.completion_ids,
            rollout.completion_mask,
            temperature=self.sampling.temperature,
        )

    def _reaching_all(self, loss: Tensor, rollout: Rollout) -> Tensor:
        """The loss, made to reach the vision parameters that a micro-batch without pictures leaves out.

        So every backward is one on every rank, whatever its micro-batch holds.
        """
        if rollout.batch.media:
            return loss
        left_out = [
            p for part in ("projector", "vision") for _, p in self.policy.parts()[part] if p.requires_grad
        ]
        return loss + sum((0.0 * parameter.sum() for parameter in left_out), start=torch.zeros_like(loss))

    def descend(self) -> Tensor:
        """Clip the gradient and step; returns its norm before clipping."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        return norm

    def watch(self, rollout: Rollout, metrics: dict[str, Tensor]) -> None:
        """Log what a person follows: rewards by part and task, spread within groups, lengths, clipping."""
        lengths = rollout.completion_mask.sum(dim=1).float()
        spread = rollout.rewards.view(-1, rollout.group_size).std(dim=1)
        parts = {f"reward/{name}": part.mean() for name, part in rollout.reward_parts.items()}
        tasks = [prompt.task_type for prompt in rollout.prompts for _ in range(rollout.group_size)]
        for task in sorted(set(tasks)):
            chosen = torch.tensor([t == task for t in tasks])
            parts[f"accuracy/{task.replace(' ', '_')}"] = rollout.reward_parts["accuracy"][chosen].mean()
        verdicts = [judgement.answer for judgement in rollout.judgements]
        self.log_dict(
            metrics | parts | {
                "reward/total": rollout.rewards.mean(),
                "rollout/zero_variance_groups": (spread == 0).float().mean(),
                "rollout/length": lengths.mean(),
                "rollout/truncated": (lengths == self.sampling.max_length).float().mean(),
                "rollout/verdict_a": verdicts.count("A") / len(verdicts),
            },
            batch_size=len(rollout.prompts), sync_dist=True,
        )  # fmt: skip
        self.log("accuracy", parts["reward/accuracy"], prog_bar=True, logger=False)
        self.last_rollout = rollout

    def _with_logprobs(self, rollout: Rollout) -> Rollout:
        """Add old and reference log-probabilities where the algorithm needs them."""
        if self.num_iterations > 1:
            old = [self.logprobs(part)[0] for part in rollout.micro_batches(self.micro_batch_size)]
            rollout = replace(rollout, old_logprobs=rollout.join(old))
        if self.loss.needs_reference:
            rollout = replace(rollout, ref_logprobs=rollout.join(self._reference_logprobs(rollout)))
        return rollout

    def _reference_logprobs(self, rollout: Rollout) -> list[Tensor]:
        parts = rollout.micro_batches(self.micro_batch_size)
        if self.policy.adapted:
            with self.policy.adapters_off():
                return [self.logprobs(part)[0] for part in parts]
        reference, temperature = self.reference[0].to(self.device), self.sampling.temperature
        return [
            reference.logprobs(p.batch, p.completion_ids, p.completion_mask, temperature=temperature)[0]
            for p in parts
        ]
