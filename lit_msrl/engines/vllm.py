"""Sampling with vLLM in the training process, which lends it the device while it samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from lit_msrl.engines.base import Completions, Sampling
from lit_msrl.engines.synced import SyncedEngine
from lit_msrl.engines.together import Together, own
from lit_msrl.engines.transfer import on_each
from lit_msrl.engines.vllm_requests import allowed_rank, completions, prompt_ids, sampling_parameters
from lit_msrl.engines.vllm_sampler import Sampler
from lit_msrl.engines.vllm_sums import EXACT, Sum, sent_adapters
from lit_msrl.engines.weights import Named
from lit_msrl.policy import HALF, GenerativeRMPolicy, PromptBatch
from lit_msrl.prompts import JudgingPrompt

OTHER = "use HFEngine, or report this with your model's name"
IDS = itertools.count(1)  # of adapters: vLLM must never have seen one before


class VLLMEngine(SyncedEngine):
    """Samples with vLLM 0.32 in this process, on the same device.

    A prompt is sent once for its group, with its pictures as they are; vLLM reads it once (prefix cache).
    Weights are handed over in memory before sampling, if they have changed: all of them, or only the
    adapters where nothing else trains. Weights in 4 bits are served as the plain numbers they stand for.
    After each time the sums of what vLLM holds are compared with the sums of what was sent.

    On a GPU vLLM sleeps while the policy learns: its weights move to the host, its cache is dropped, and
    both come back in turn, weights, then what has changed, then the cache. On a CPU vLLM cannot sleep; its
    cache (``kv_cache_gib``) and its copy of the weights stay.

    Each rank of several has a vLLM of its own, for its own prompts. Where a device cannot hold the whole
    model beside what trains, ``tensor_parallel`` adjacent ranks run one vLLM, for the prompts of all of them.

    Args:
        check: Compare with the policy at the start and after the first step (``StartUpChecks``).
        tensor_parallel: Devices over which vLLM spreads the model; they must be of one machine.
        gpu_memory: The part of a GPU's memory that vLLM may take, weights and cache together.
        kv_cache_gib: The cache on a CPU, in GiB.
        dtype: vLLM computes in ``float32``, ``bfloat16`` or ``float16``; by default as the policy.
        eager: Run without CUDA graphs: starts sooner, samples slower. On a CPU it always does.
        timeout: Seconds for a call of vLLM (its start, a transfer of weights, the completions of a step)
            after which the run ends with a message instead of waiting. Less than the 1800 after which the
            other ranks give up, who wait for this one and do not know why.
    """

    def __init__(
        self,
        *,
        check: bool = True,
        tensor_parallel: int = 1,
        gpu_memory: float = 0.3,
        kv_cache_gib: int = 1,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        eager: bool = False,
        timeout: float = 1200.0,
    ) -> None:
        super().__init__(check=check)
        self.gpu_memory, self.kv_cache_gib, self.dtype = gpu_memory, kv_cache_gib, dtype
        self.eager, self.timeout = eager, timeout
        self.tensor_parallel = tensor_parallel
        self.together: Together | None = None
        self.sampler: Sampler | None = None
        self.adapter: Any = None

    @property
    def half(self) -> bool:
        """Whether vLLM computes in 16 bits."""
        return self.dtype is not None and getattr(torch, self.dtype) in HALF

    def generate(
        self,
        policy: GenerativeRMPolicy,
        prompts: Sequence[JudgingPrompt],
        batch: PromptBatch,
        *,
        sampling: Sampling,
        seed: int,
    ) -> Completions:
        """See ``RolloutEngine``; ranks that run one vLLM ask for everyone's prompts and keep their own."""
        if self.together is None:
            self.together = Together(self.tensor_parallel, self.timeout)
        everyones, before = self.together.prompts(prompts)
        seed = self.together.gather(seed)[0]
        drawn = super().generate(policy, everyones, batch, sampling=sampling, seed=seed)
        return own(drawn, before * sampling.group_size, len(prompts) * sampling.group_size)

    # ---- starting and sending ----------------------------------------------------------------------------

    def start(self, policy: GenerativeRMPolicy) -> None:
        """Start vLLM without weights, or take the one that runs in this process if it fits."""
        environment = {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": str(self.kv_cache_gib),
        }
        options = self._options(policy)
        if "distributed_executor_backend" in options:
            environment |= {
                "RANK": str(torch.distributed.get_rank()),
                "LOCAL_RANK": str(policy.device.index or 0),
            }
        self.sampler = Sampler.of(policy, options, timeout=self.timeout, environment=environment)
        self.sampler.owner, self.adapter = self, None

    def serves(self, policy: GenerativeRMPolicy) -> bool:
        """Not if another engine has taken over, or ended, the vLLM of this process."""
        mine = self.sampler is not None and self.sampler is Sampler.running and self.sampler.owner is self
        return mine and super().serves(policy)

    def _options(self, policy: GenerativeRMPolicy) -> dict[str, Any]:
        on_gpu, text = policy.device.type == "cuda", policy.model.config.get_text_config()
        options: dict[str, Any] = {
            "load_format": "dummy",  # the weights are sent
            "dtype": self.dtype or str(policy.arithmetic).removeprefix("torch."),
            "max_model_len": min(policy.max_length, text.max_position_embeddings),
            "enforce_eager": self.eager or not on_gpu,
            "tensor_parallel_size": self.tensor_parallel,
            "enable_prefix_caching": True,
            "enable_sleep_mode": on_gpu,
            "gpu_memory_utilization": self.gpu_memory,
            "generation_config": "vllm",  # nobody's defaults
            "logprobs_mode": "processed_logprobs",  # of the distribution that was drawn from
            "mm_processor_kwargs": policy.backbone.processor_options(),
            "limit_mm_per_prompt": {"video": 0},  # clips are sent as their frames
            "mm_device_do_normalize": False,  # else by buffers that are not sent, and random here
            "seed": 0,
        }
        if not on_gpu:  # a prompt read in pieces asks a CPU's generator for what it cannot do
            options |= {"enable_chunked_prefill": False}
            options |= {"max_num_batched_tokens": max(4096, options["max_model_len"])}
        if policy.lora is not None:
            options |= {"enable_lora": True, "max_lora_rank": allowed_rank(policy.lora.rank), "max_loras": 1}
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            options["distributed_executor_backend"] = "external_launcher"  # the device is LOCAL_RANK
        elif on_gpu:  # else the first one
            options["device_ids"] = [policy.device.index or 0]
        return options

    def send_model(self, policy: GenerativeRMPolicy, weights: Iterator[Named]) -> None:
        """See ``SyncedEngine``.

        Raises:
            ValueError: vLLM holds something else than what was sent.
        """
        assert self.together is not None
        sampler = self._sampler
        sampler.call("waking up", lambda: sampler.wake("weights"))
        sent = on_each(lambda: sampler.call("taking weights", lambda: sampler.reload(weights)))
        held = sampler.call("adding up its weights", lambda: sampler.held(list(sent)))
        totals = self.together.gather({name: one.total for name, one in held.items()})
        for name, (copies, _, rounding) in held.items():
            expected = Sum.together(sent[part].times(times) for part, times in copies.items())
            total = sum(those[name] for those in totals)
            expected.compare(total, rounding, f"vLLM holds other weights than it was sent: {name}", OTHER)

    def send_adapters(self, policy: GenerativeRMPolicy, weights: Iterator[Named]) -> None:
        """See ``SyncedEngine``.

        Raises:
            ValueError: vLLM holds something else than what was sent.
        """
        assert policy.lora is not None
        sampler, number, adapters = self._sampler, next(IDS), dict(weights)
        sampler.call("waking up", lambda: sampler.wake("weights"))
        with TemporaryDirectory(prefix="lit_msrl_adapter_") as folder:
            policy.lora.save(adapters, folder, base="")
            self.adapter = sampler.call("taking adapters", lambda: sampler.adapt(folder, number))
        held = sampler.call("adding up its adapters", lambda: sampler.held_adapter(number))
        for letter, sent in sent_adapters(policy.lora, adapters, sampler.dtype).items():
            sent.compare(
                held[letter].total, EXACT, f"vLLM holds other adapters than it was sent: lora_{letter}", OTHER
            )

    # ---- drawing -----------------------------------------------------------------------------------------

    def draw(
        self,
        policy: GenerativeRMPolicy,
        prompts: Sequence[JudgingPrompt],
        batch: PromptBatch,
        *,
        sampling: Sampling,
        seed: int,
    ) -> Completions:
        """See ``SyncedEngine``."""
        sampler, requests = self._sampler, [_request(policy, prompt) for prompt in prompts]

        def generate() -> list[Any]:
            from vllm import SamplingParams  # pyright: ignore

            parameters = [
                SamplingParams(**sampling_parameters(policy, sampling, seed=seed, number=number))
                for number in range(len(prompts))
            ]
            sampler.wake("weights")
            sampler.wake("kv_cache")
            sampler.llm.reset_prefix_cache()  # so that a draw does not depend on those before
            return sampler.llm.generate(requests, parameters, use_tqdm=False, lora_request=self.adapter)

        outputs = sampler.call("completions", generate)
        written = [c for o in outputs for c in sorted(o.outputs, key=lambda c: c.index)]
        drawn = [s[t].logprob for one in written for t, s in zip(one.token_ids, one.logprobs, strict=True)]
        return completions(policy, [one.token_ids for one in written], drawn)

    def rest(self) -> None:
        """Let vLLM sleep, where it can."""
        self._sampler.call("going to sleep", self._sampler.sleep)

    @property
    def _sampler(self) -> Sampler:
        assert self.sampler is not None
        return self.sampler


def _request(policy: GenerativeRMPolicy, prompt: JudgingPrompt) -> dict[str, Any]:
    """A prompt with one placeholder for each picture, and the pictures."""
    ids = prompt_ids(policy, prompt)
    frames = [frame for medium in prompt.media for frame in medium.frames]
    return {"prompt_token_ids": ids} | ({"multi_modal_data": {"image": frames}} if frames else {})
