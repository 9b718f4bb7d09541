"""Sampling with a ``vllm serve`` on other devices, which is sent the weights after each step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lit_msrl.adapters import LoRA
from lit_msrl.endpoint import message
from lit_msrl.engines.base import Completions, Sampling
from lit_msrl.engines.synced import SyncedEngine
from lit_msrl.engines.transfer import from_first, is_first, on_each, write_shards, writing
from lit_msrl.engines.vllm_client import RESTART, Server, require
from lit_msrl.engines.vllm_requests import completions, prompt_ids, sampling_parameters
from lit_msrl.engines.vllm_sums import EXACT, sent_adapters
from lit_msrl.engines.weights import Named
from lit_msrl.policy import HALF, GenerativeRMPolicy, PromptBatch
from lit_msrl.prompts import JudgingPrompt

OTHER = "use a server of this run's own, and HFEngine if it is"


class VLLMServerEngine(SyncedEngine):
    r"""Samples with vLLM 0.32 behind HTTP, on devices that train nothing.

    Start it with the same model, and with this package installed beside it::

        VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --logprobs-mode processed_logprobs \
            --mm-processor-kwargs '{"crop_to_patches": false}' --max-model-len 8192

    (``crop_to_patches`` for InternVL only, as in its image processor's configuration; ``MODEL`` for the
    embedded model is ``lit_msrl/assets/tiny_internvl``), and for LoRA also
    ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`` and
    ``--enable-lora --max-lora-rank 16 --worker-extension-cls lit_msrl.engines.vllm_sums.AdapterSums``.
    On a CPU add ``--no-enable-chunked-prefill --max-num-batched-tokens 8192``: a generator there cannot step
    back, as it must after a piece of a prompt.
    In this mode anyone who reaches the port can change the model: keep it inside the cluster.

    A prompt is sent once for its group, as token ids with a placeholder per picture, and its pictures as they
    are. The ids that vLLM makes of it come back and must be those that are trained on. Weights go through a
    folder, from the first rank: all of them, or the adapters alone where nothing else trains. Then vLLM
    empties its caches, is given a version, which comes back with every completion, and says what it holds,
    which must be what was sent. So a server that was started again, or that another run uses, is found out.
    Several ranks share the server; each asks for its own prompts.

    Args:
        url: Where it is, such as ``http://node2:8000``.
        check: Compare with the policy at the start and after the first step (``StartUpChecks``).
        folder: A folder that trainer and server both see under this name, as the same user; by default the
            system's for temporary files, which will do on one machine. Holds the model while it is sent.
        at_once: Prompts that are asked for at the same time.
        timeout: Seconds for a request (a transfer of weights, a group of completions) after which the run
            ends with a message instead of waiting. Less than the 1800 after which the other ranks give up,
            who wait for this one and do not know why.
    """

    def __init__(
        self,
        url: str,
        *,
        check: bool = True,
        folder: str | None = None,
        at_once: int = 64,
        timeout: float = 1200.0,
    ) -> None:
        super().__init__(check=check)
        self.server = Server(url.rstrip("/").removesuffix("/v1"), timeout)
        self.shared, self.at_once = folder, at_once
        self.dtype = torch.float32
        self.base = self.model = self.version = ""
        self.alike: set[str] = set()

    @property
    def half(self) -> bool:
        """Whether vLLM computes in 16 bits."""
        return self.dtype in HALF

    # ---- starting and sending ------------------------------------------------------------------------------

    def start(self, policy: GenerativeRMPolicy) -> None:
        """See that the server is there and was started with what is needed.

        Raises:
            ValueError: It was not.
        """
        on_each(lambda: self._start(policy))

    def _start(self, policy: GenerativeRMPolicy) -> None:
        about = self.server.get("/server_info?config_format=json", "its settings (VLLM_SERVER_DEV_MODE=1)")
        config = about["vllm_config"]
        require(self.server.url, config, policy)
        self.dtype = getattr(torch, config["model_config"]["dtype"].removeprefix("torch."))
        self.base = self.model = self.server.get("/v1/models", "its name")["data"][0]["id"]
        self.alike = set()

    def send_model(self, policy: GenerativeRMPolicy, weights: Iterator[Named]) -> None:
        """See ``SyncedEngine``.

        Raises:
            ValueError: vLLM holds something else than what was sent.
        """
        self._send(weights, self._replace_model)

    def send_adapters(self, policy: GenerativeRMPolicy, weights: Iterator[Named]) -> None:
        """See ``SyncedEngine``.

        Raises:
            ValueError: vLLM holds something else than what was sent.
        """
        lora = policy.lora
        assert lora is not None
        self._send(weights, lambda weights, folder: self._replace_adapters(lora, weights, folder))
        self.model = self.version

    def _send(self, weights: Iterator[Named], replace: Callable[[Iterator[Named], Path], None]) -> None:
        """On the first rank put weights into a new folder and have the server read it."""
        if is_first():
            self.version = from_first(lambda: self._send_as_first(weights, replace))
        else:
            deque(weights, maxlen=0)
            self.version = from_first(str)

    def _send_as_first(
        self, weights: Iterator[Named], replace: Callable[[Iterator[Named], Path], None]
    ) -> str:
        try:
            with TemporaryDirectory(
                prefix="lit_msrl_", dir=self.shared, ignore_cleanup_errors=True
            ) as folder:
                replace(weights, Path(folder))
        finally:
            deque(weights, maxlen=0)  # the other ranks are going through all of them
        self._forget()
        version = Path(folder).name
        self.server.post("/update_weight_version", "a version", {"new_version": version})
        return version

    def _replace_model(self, weights: Iterator[Named], folder: Path) -> None:
        digests = write_shards(weights, folder, self.dtype)
        self.server.call("reload_weights", f"weights from {folder}", weights_path=str(folder))
        found = self.server.post("/weight_checker", "checksums", {"action": "checksum"})["checksums"]
        # A weight that vLLM has in the same form; those that it packs or splits are not comparable.
        alike = {name for digest, name in digests.items() if digest in set(found.values())}
        lost = self.alike - alike
        if lost or not alike:
            raise ValueError(
                f"vLLM at {self.server.url} holds other weights than it was sent "
                f"({min(lost, default='all')}); {OTHER}"
            )
        self.alike = self.alike or alike

    def _replace_adapters(self, lora: LoRA, weights: Iterator[Named], folder: Path) -> None:
        adapters = {name: tensor.cpu() for name, tensor in weights}
        with writing(folder):
            lora.save(adapters, str(folder), base="")
        body = {"lora_name": folder.name, "lora_path": str(folder)}
        self.server.post("/v1/load_lora_adapter", "adapters (VLLM_ALLOW_RUNTIME_LORA_UPDATING=1)", body)
        held = self.server.call("adapter_sums", "what its adapters add up to")[0]
        for letter, sent in sent_adapters(lora, adapters, self.dtype).items():
            problem = f"vLLM at {self.server.url} holds other adapters than it was sent: lora_{letter}"
            sent.compare(held[letter], EXACT, problem, OTHER)
        if self.model != self.base:
            self.server.post("/v1/unload_lora_adapter", "the end of old adapters", {"lora_name": self.model})

    def _forget(self) -> None:
        """Empty the caches of prefixes, of media, and of what the vision tower made of them."""
        if not self.server.post("/reset_prefix_cache", "an empty prefix cache")["success"]:
            raise ValueError(
                f"vLLM at {self.server.url} is writing for someone else; use one of this run's own"
            )
        self.server.post("/reset_mm_cache", "an empty media cache")
        self.server.post("/reset_encoder_cache", "an empty encoder cache")

    # ---- drawing -------------------------------------------------------------------------------------------

    def draw(
        self,
        policy: GenerativeRMPolicy,
        prompts: Sequence[JudgingPrompt],
        batch: PromptBatch,
        *,
        sampling: Sampling,
        seed: int,
    ) -> Completions:
        """See ``SyncedEngine``.

        Raises:
            ValueError: The server refuses, reads a prompt otherwise, or has other weights than it was sent.
        """
        requests = [
            self._request(policy, prompt, sampling_parameters(policy, sampling, seed=seed, number=number))
            for number, prompt in enumerate(prompts)
        ]
        answers = self.server.post_all("/inference/v1/generate", "completions", requests, self.at_once)
        for prompt, answer, ids, mask in zip(
            prompts, answers, batch.input_ids, batch.attention_mask, strict=True
        ):
            self._compare(prompt, answer, ids[mask.bool()].tolist())
        choices = [c for answer in answers for c in sorted(answer["choices"], key=lambda c: c["index"])]
        drawn = [step["logprob"] for choice in choices for step in choice["logprobs"]["content"]]
        return completions(policy, [choice["token_ids"] for choice in choices], drawn)

    def _request(
        self, policy: GenerativeRMPolicy, prompt: JudgingPrompt, parameters: dict[str, Any]
    ) -> dict[str, Any]:
        content = message(prompt.text, prompt.media)["content"] if prompt.media else []
        urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
        return {
            "model": self.model,
            "token_ids": prompt_ids(policy, prompt),
            "content_parts": [{"type": "image_url", "url": url} for url in urls] or None,
            "return_token_ids": True,
            "sampling_params": parameters,
        }

    def _compare(self, prompt: JudgingPrompt, answer: dict[str, Any], expected: list[int]) -> None:
        """What was read must be what is trained on, and who wrote must have the weights that were sent."""
        read = answer["prompt_token_ids"]
        if read != expected:
            raise ValueError(
                f"vLLM at {self.server.url} reads example {prompt.example.id!r} as {len(read)} tokens, "
                f"the policy as {len(expected)} others: start it with the same model, as docs/scale.md says"
            )
        versions = {
            span["version"] for choice in answer["choices"] for span in choice["weight_versions"] or ()
        }
        if versions != {self.version}:
            raise ValueError(
                f"vLLM at {self.server.url} wrote with weights {', '.join(sorted(versions))} instead of "
                f"{self.version}: it was started again, or another run uses it; {RESTART}"
            )
