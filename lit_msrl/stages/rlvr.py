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

from lit_msrl import functional as F
from lit_msrl.backbones import Part
from lit_msrl.engines import RolloutEngine, Sampling
from lit_msrl.losses.base import RLVRLoss
from lit_msrl.policy import GenerativeRMPolicy, PromptBatch
from lit_msrl.prompts import JudgingPrompt, Style, View, render
from lit_msrl.rewards import RewardSum
from lit_msrl.rollout import Rollout
from lit_msrl.stages.base import StageModule
from lit_msrl.stages.watch import gradient_norms, peak_memory, rollout_means, step_means, task_means
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
        both_orders: Show each example twice, with A and B exchanged; a step has twice as many prompts.
        overlong_buffer: Over the last so many tokens before ``max_completion`` the reward falls by up to 1
            (DAPO's soft overlong punishment); 0 for none.
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
        both_orders: bool = False,
        overlong_buffer: int = 0,
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
        self.both_orders, self.overlong_buffer = both_orders, overlong_buffer
        self.micro_batch_size, self.num_iterations = micro_batch_size, num_iterations
        self.max_grad_norm = max_grad_norm
        self.reference: list[GenerativeRMPolicy] = []  # in a list, so that it is no part of the checkpoint

    def configure_callbacks(self) -> list[Callback]:
        """The loss lives through the run as a callback."""
        return [self.loss]

    def setup(self, stage: str) -> None:
        """Keep the policy as it starts, if the loss compares with it."""
        super().setup(stage)
        if stage == "fit" and self.loss.needs_reference and not self.policy.adapted:
            self.reference = [copy.deepcopy(self.policy).requires_grad_(False)]

    def training_step(self, batch: list[PreferenceExample], batch_idx: int) -> None:
        """One step of the algorithm."""
        start = time.perf_counter()
        rollout = self.rollout(batch)
        sampled = time.perf_counter()
        lessons = self.lessons(rollout)
        for _ in range(self.num_iterations):
            metrics: dict[str, Tensor] = {}
            for group_batch in lessons.micro_batches(self.micro_batch_size):
                logprobs, entropy = self.logprobs(group_batch)
                loss, parts = self.loss(logprobs, group_batch, entropy)
                self.manual_backward(
                    self._reaching_all(loss, group_batch) * self.trainer.world_size
                )  # ranks are averaged
                mean_entropy = entropy.detach().sum() / group_batch.step_tokens
                parts |= {"rlvr/loss": loss.detach(), "rlvr/entropy": mean_entropy}
                metrics = {key: metrics.get(key, 0.0) + value for key, value in parts.items()}
            norms = self.descend()
        learned = time.perf_counter()
        self.watch(rollout, metrics, norms)
        self.log_dict(
            {
                "time/sample": sampled - start,
                "time/learn": learned - sampled,
                "tokens_per_second/sample": rollout.step_tokens / (sampled - start),
                "tokens_per_second/learn": self.num_iterations * lessons.step_tokens / (learned - sampled),
            }
        )

    @torch.no_grad()
    def rollout(self, examples: list[PreferenceExample]) -> Rollout:
        """Sample a group per prompt, score it, give credit."""
        prompts = self.show_both(examples) if self.both_orders else self.show(examples)
        batch = self.policy.encode(prompts)
        seed = hash((self.seed, self.trainer.global_step, self.trainer.global_rank)) % 2**62
        completions = self.engine.generate(self.policy, prompts, batch, sampling=self.sampling, seed=seed)
        texts = self.policy.decode(completions.ids, completions.mask)
        judgements = self.reward.read(texts, prompts)
        rewards, parts = self.reward(judgements, prompts)
        rewards, parts = rewards.to(self.device), {name: p.to(self.device) for name, p in parts.items()}
        if self.overlong_buffer:
            lengths = completions.mask.sum(dim=1)
            parts["overlong"] = F.overlong_penalty(lengths, self.sampling.max_length, self.overlong_buffer)
            rewards = rewards + parts["overlong"]
        truncated = ~(completions.mask & (completions.ids == self.policy.tokenizer.eos_token_id)).any(dim=1)
        counted = self.loss.counted(completions.mask, truncated)
        size = self.loss.normalizer(counted, self.sampling.max_length)
        return Rollout(
            prompts=prompts,
            batch=batch,
            completion_ids=completions.ids,
            completion_mask=completions.mask,
            group_size=self.sampling.group_size,
            texts=texts,
            judgements=judgements,
            rewards=rewards,
            reward_parts=parts,
            advantages=self.credit(rewards),
            truncated=truncated,
            normalizer=self._over_ranks(size),
            tokens=self._over_ranks(completions.mask.sum().float()),
            sampler_logprobs=completions.logprobs,
        )

    def show_both(self, examples: list[PreferenceExample]) -> list[JudgingPrompt]:
        """Each example in both orders, next to each other."""
        return [
            render(example, view=self.view, style=self.style, swapped=swapped)
            for example in examples
            for swapped in (False, True)
        ]

    def credit(self, rewards: Tensor) -> Tensor:
        """Advantages of this rank's completions, ``(B,)``; the loss sees the rewards of the whole step."""
        everyones = torch.as_tensor(self.all_gather(rewards)).view(-1)
        advantages = self.loss.advantages(everyones, self.sampling.group_size)
        return advantages.view(-1, len(rewards))[self.global_rank]

    @torch.no_grad()
    def lessons(self, rollout: Rollout) -> Rollout:
        """What is learned from: not the groups without any advantage, if to the loss they mean nothing.

        Every rank keeps as many groups as the one with the most to learn, and at least one, so that all go
        through the same number of micro-batches.
        """
        if not self.loss.needs_all_groups:
            idle = (rollout.advantages.view(-1, rollout.group_size) == 0).all(dim=1)  # (P,)
            kept = int(self.trainer.strategy.reduce((~idle).sum(), reduce_op="max"))
            if kept < len(idle):
                groups = idle.int().argsort(stable=True)[: max(kept, 1)].sort().values.tolist()
                rollout = rollout.pick(groups, _pick(rollout.batch, groups))
                rollout = replace(rollout, tokens=self._over_ranks(rollout.completion_mask.sum().float()))
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

    def descend(self) -> dict[str, Tensor]:
        """Clip the gradient and step; returns its norm before clipping, of all parts and of each."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
        norms = gradient_norms(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norms["rlvr/gradient_norm"] = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        return norms

    def watch(self, rollout: Rollout, metrics: dict[str, Tensor], norms: dict[str, Tensor]) -> None:
        """Log what a person follows."""
        alike = step_means(metrics, self._over_ranks) | task_means(rollout, self._over_ranks) | norms
        self.log_dict(alike | {"memory/peak_gib": peak_memory(self.device)})
        means = rollout_means(rollout)
        self.log_dict(means, batch_size=len(rollout.prompts), sync_dist=True)
        self.log("accuracy", means["reward/accuracy"], prog_bar=True, logger=False, sync_dist=True)
        self.last_rollout = rollout

    def _over_ranks(self, tensor: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(tensor, reduce_op="sum")  # type: ignore[return-value]

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


def _pick(batch: PromptBatch, rows: list[int]) -> PromptBatch:
    """Some of the prompts."""
    media = {
        name: torch.cat([tensor.split(batch.media_rows[name])[row] for row in rows])
        for name, tensor in batch.media.items()
    }
    counts = {name: [each[row] for row in rows] for name, each in batch.media_rows.items()}
    whole = PromptBatch(batch.input_ids[rows], batch.attention_mask[rows], media, counts)
    return whole.select(slice(None))  # without padding and media that none of them needs
