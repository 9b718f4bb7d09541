"""Reinforcement learning with verifiable rewards."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lit_msrl import functional as F
from lit_msrl.backbones import Part
from lit_msrl.engines import RolloutEngine, Sampling
from lit_msrl.losses.base import RLVRLoss
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import JudgingPrompt, Style, View, render
from lit_msrl.rewards import RewardSum
from lit_msrl.rollout import Lesson, Rollout
from lit_msrl.sharing import check_sharing
from lit_msrl.stages.base import StageModule
from lit_msrl.stages.lessons import Pool
from lit_msrl.stages.memory import with_less_at_once
from lit_msrl.stages.planning import MicroBatchPlan, MicroBatchSize
from lit_msrl.stages.watch import gradient_norms, peak_memory, rollout_means, step_means, task_means
from lit_msrl.strategies import FSDP2, whole
from lit_msrl.types import PreferenceExample


class RLVRModule(StageModule):
    """Sample, score, credit, descend: one batch of prompts is one rollout is one optimizer step.

    With ``max_rounds`` above 1 a step may take several batches, until as many groups teach something as one
    batch holds (DAPO's dynamic sampling, arXiv:2503.14476); groups beyond that open the next step.

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
        top_p: Sample among the most probable tokens that together have this probability; 1 for all.
        top_k: Sample among so many most probable tokens; 0 for all.
        max_rounds: Batches sampled for a step at most, if groups that teach nothing are to be replaced.
        micro_batch_size: Prompts per forward and backward; changes memory, not the gradient. ``auto``: as
            many as fit into free memory.
        num_iterations: Optimizer steps per rollout, ``mu``.
        max_grad_norm: The gradient is scaled down to this norm.
        warmup_steps: Optimizer steps over which learning rates rise linearly.
        cosine: Let learning rates fall to zero along a cosine over ``trainer.max_steps``.
        view: Show evidence as ``caption`` or as pixels (``visual``).
        style: Prompt wording, ``full`` (the paper's) or ``compact`` (for tiny models).
        engine: What samples completions.
        max_completion: Longest completion in tokens (public scripts: 1024).
        seed: Seed of all sampling.

    Raises:
        ValueError: Options that do not go together.
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
        top_p: float = 1.0,
        top_k: int = 0,
        max_rounds: int = 1,
        micro_batch_size: MicroBatchSize = 8,
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
        self.sampling = Sampling(group_size, max_completion, temperature, top_p, top_k)
        self.pool = Pool(loss, max_completion, max_rounds)
        self.both_orders, self.overlong_buffer = both_orders, overlong_buffer
        self.micro_batches, self.num_iterations = MicroBatchPlan(micro_batch_size), num_iterations
        self.sharing_is_checked = False
        self.max_grad_norm = max_grad_norm
        self.reference: list[GenerativeRMPolicy] = []  # in a list, so that it is no part of the checkpoint
        self._check_options()

    def _check_options(self) -> None:
        if self.loss.corrects_sampler and self.sampling.truncated:
            raise ValueError(
                "model.loss.correction cannot be combined with model.top_p below 1 or model.top_k: what they "
                "cut off is never drawn, so no weight makes up for it; use top_p 1 and top_k 0"
            )

    def configure_callbacks(self) -> list[Callback]:
        """The loss lives through the run as a callback."""
        return [self.loss]

    def setup(self, stage: str) -> None:
        """Keep the policy as it starts, if the loss compares with it.

        Raises:
            ValueError: The precision scales gradients.
        """
        super().setup(stage)
        precision = self.trainer.precision_plugin
        if isinstance(precision, MixedPrecision) and precision.scaler is not None:
            raise ValueError(
                "trainer.precision=16-mixed scales gradients, so that model.max_grad_norm is wrong; "
                "use bf16-mixed"
            )
        if stage == "fit" and self.loss.needs_reference and not self.policy.adapted:
            self.reference = [copy.deepcopy(self.policy).requires_grad_(False)]

    def configure_model(self) -> None:
        """The reference is sharded like the policy, and else goes to its device."""
        super().configure_model()
        for reference in self.reference:
            if isinstance(self.trainer.strategy, FSDP2):
                self.trainer.strategy.shard(reference)
            else:
                reference.to(self.trainer.strategy.root_device)

    def training_step(self, batch: list[PreferenceExample], batch_idx: int) -> None:
        """One step of the algorithm; with ``max_rounds`` one round of sampling, and a step when it is due."""
        start = time.perf_counter()
        rollout = self.rollout(batch)
        sampled = time.perf_counter()
        self.check_sharing(rollout)
        self.watch(rollout, sampled - start)
        lessons = self.lessons(rollout)
        if lessons:
            metrics = self.learn(lessons)
            self.loss.adapt(metrics)
            seconds = time.perf_counter() - sampled
            tokens = self.num_iterations * lessons[0].step_tokens
            speed = {"time/learn": seconds, "tokens_per_second/learn": tokens / seconds}
            self.log_dict(metrics | speed | {"memory/peak_gib": peak_memory(self.device)})

    def check_sharing(self, rollout: Rollout) -> None:
        """Once, compare the first two completions with plain rows (``lit_msrl.sharing``)."""
        if not self.sharing_is_checked:
            ids, mask = rollout.completion_ids[:2], rollout.completion_mask[:2]
            with isolate_rng():  # a resumed run checks again, and must go on as if it had not
                check_sharing(self.policy, rollout.batch.pick([0]), ids, mask, self._worst)
            self.sharing_is_checked = True

    def learn(self, lessons: list[Lesson]) -> dict[str, Tensor]:
        """``num_iterations`` optimizer steps; returns the last one's metrics and gradient norms."""
        metrics: dict[str, Tensor] = {}
        norms: dict[str, Tensor] = {}
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        with isolate_rng():
            self.micro_batches.update(lessons, self.policy, optimizer, self._worst)
        for _ in range(self.num_iterations):
            metrics = with_less_at_once(self, partial(self.accumulate, lessons), self.micro_batches.halve)
            norms = self.descend()
        return step_means(metrics, self._over_ranks) | norms

    def accumulate(self, lessons: list[Lesson]) -> dict[str, Tensor]:
        """The gradient of the step's loss, micro-batch by micro-batch; returns metrics that add up."""
        metrics: dict[str, Tensor] = {}
        for part in [p for lesson in lessons for p in lesson.micro_batches(self.micro_batches.groups)]:
            logprobs, entropy = self.logprobs(part)
            loss, watched = self.loss(logprobs, part, entropy)
            # the world size, because gradients are averaged over ranks
            self.manual_backward(loss * self.trainer.world_size)
            watched["rlvr/loss"] = loss.detach()
            watched["rlvr/entropy"] = F.aggregate(
                entropy.detach(), part.completion_mask, "token", normalizer=part.step_tokens
            )
            metrics = {key: metrics.get(key, 0.0) + value for key, value in watched.items()}
        return metrics

    @torch.no_grad()
    def rollout(self, examples: list[PreferenceExample]) -> Rollout:
        """Sample a group per prompt, score it, give credit."""
        prompts = self.show_both(examples) if self.both_orders else self.show(examples)
        batch = self.policy.see(self.policy.encode(prompts))
        seed = self.sampling_seed(salt=self.pool.rounds)
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
    def lessons(self, rollout: Rollout) -> list[Lesson]:
        """What is learned from now, compared with what it has to be; empty if more is to be sampled first."""
        old_logprobs, rounds = partial(self._logprobs_under, self.policy), self.pool.rounds + 1
        lessons = self.pool.lessons(rollout, self.trainer, old_logprobs)
        if lessons and self.pool.max_rounds > 1:
            self.log_dict({"rollout/rounds": float(rounds), "rollout/carried": float(self.pool.groups)})
        return [self._compared(lesson) for lesson in lessons]

    def logprobs(self, lesson: Lesson, policy: GenerativeRMPolicy | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of the completions under the policy, ``(b, T)`` each."""
        ids, mask, temperature = lesson.completion_ids, lesson.completion_mask, self.sampling.temperature
        return (policy or self.policy).logprobs(lesson.batch, ids, mask, temperature=temperature)

    def descend(self) -> dict[str, Tensor]:
        """Clip the gradient and step; returns its norm before clipping, of all parts and of each."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
        norms = gradient_norms(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norms["rlvr/gradient_norm"] = whole(torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        return norms

    def watch(self, rollout: Rollout, seconds: float) -> None:
        """Log what a person follows of the sampling."""
        means = rollout_means(rollout)
        self.log_dict(means, batch_size=len(rollout.prompts), sync_dist=True)
        self.log("accuracy", means["reward/accuracy"], prog_bar=True, logger=False, sync_dist=True)
        speed = {"time/sample": seconds, "tokens_per_second/sample": rollout.step_tokens / seconds}
        self.log_dict(task_means(rollout, self._over_ranks) | speed)
        self.last_rollout = rollout

    def _worst(self, tensor: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(tensor, reduce_op="max")  # type: ignore[return-value]

    def _over_ranks(self, tensor: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(tensor, reduce_op="sum")  # type: ignore[return-value]

    # ---- log-probabilities to compare with -----------------------------------------------------------------

    def _compared(self, lesson: Lesson) -> Lesson:
        """Add old and reference log-probabilities where the algorithm needs them."""
        if self.num_iterations > 1 and lesson.old_logprobs is None:
            lesson = replace(lesson, old_logprobs=self._logprobs_under(self.policy, lesson))
        if self.loss.needs_reference and self.policy.adapted:
            with self.policy.adapters_off():
                lesson = replace(lesson, ref_logprobs=self._logprobs_under(self.policy, lesson))
        elif self.loss.needs_reference:
            lesson = replace(lesson, ref_logprobs=self._logprobs_under(self.reference[0], lesson))
        return lesson

    def _logprobs_under(self, policy: GenerativeRMPolicy, lesson: Lesson) -> Tensor:
        parts = lesson.micro_batches(self.micro_batches.groups)
        return lesson.join([self.logprobs(part, policy)[0] for part in parts])

    # ---- checkpoints ---------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the groups that wait for a step, of all ranks."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["pool"] = self.pool.state_dict(self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Bring them back."""
        super().on_load_checkpoint(checkpoint)
        self.pool.load_state_dict(checkpoint.get("pool", []), self.trainer)
