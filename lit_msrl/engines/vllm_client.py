"""Talking to ``vllm serve``: what it must be started with, and one line for all that can go wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import openai

from lit_msrl.endpoint import reason
from lit_msrl.engines.vllm_requests import allowed_rank
from lit_msrl.policy import GenerativeRMPolicy

EXTENSION = "lit_msrl.engines.vllm_sums.AdapterSums"
RESTART = "start it again (docs/scale.md has the command) and go on with --ckpt_path=last"


@dataclass(frozen=True)
class Server:
    """A ``vllm serve`` in development mode. A key is read from the environment (``OPENAI_API_KEY``).

    Attributes:
        url: Where it is, such as ``http://node2:8000``, without ``/v1``.
        timeout: Seconds for one request.

    Raises:
        ValueError: The URL is none.
    """

    url: str
    timeout: float

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise ValueError(f"the engine's url {self.url!r} is no URL such as http://localhost:8000")

    @cached_property
    def _client(self) -> openai.OpenAI:
        key = os.environ.get("OPENAI_API_KEY") or "none"
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=self.timeout)

    def get(self, path: str, what: str) -> Any:
        """What is at a path; ``what`` is said if it fails.

        Raises:
            ConnectionError: There is no server, or it died.
            TimeoutError: It did not answer in time.
            ValueError: It refuses.
        """
        with self._telling(what):
            return self._client.get(path, cast_to=object)

    def post(self, path: str, what: str, body: dict[str, Any] | None = None) -> Any:
        """Ask for something; raises as ``get``."""
        with self._telling(what):
            return self._client.post(path, body=body or {}, cast_to=object)

    def call(self, method: str, what: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Call a method of all its workers; raises as ``get``."""
        body = {"method": method, "args": args, "kwargs": kwargs, "timeout": self.timeout}
        return self.post("/collective_rpc", what, body)["results"]

    def post_all(self, path: str, what: str, bodies: Sequence[dict[str, Any]], at_once: int) -> list[Any]:
        """Ask for many things, so many at the same time; after a failure nothing more is asked."""
        pool = ThreadPoolExecutor(at_once)
        try:
            asked = [pool.submit(self.post, path, what, body) for body in bodies]
            for answered in as_completed(asked):
                answered.result()
            return [answered.result() for answered in asked]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except openai.APITimeoutError as error:
            raise TimeoutError(
                f"vLLM at {self.url} has not finished {what} after {self.timeout:g} s: if it is only slow "
                f"raise the engine's timeout, else {RESTART}"
            ) from error
        except openai.APIConnectionError as error:
            raise ConnectionError(
                f"vLLM at {self.url} was lost at {what} ({error.__cause__ or error}): {RESTART}"
            ) from error
        except openai.APIStatusError as error:
            then = f"; {RESTART}" if error.status_code >= 500 else ""
            raise ValueError(f"vLLM at {self.url}, asked for {what}, {reason(error)}{then}") from error


@dataclass(frozen=True)
class Setting:
    """One of a server's settings.

    Attributes:
        section: Of its ``vllm_config``.
        name: Within the section.
        needed: What it must be; of a number, at least.
        option: What sets it.
    """

    section: str
    name: str
    needed: str | int
    option: str

    def fits(self, value: Any) -> bool:
        """Whether the server's will do."""
        return value == self.needed if isinstance(self.needed, str) else (value or 0) >= self.needed


def _wanted(policy: GenerativeRMPolicy) -> list[Setting]:
    """How a server for this policy must have been started."""
    longest = min(policy.max_length, policy.model.config.get_text_config().max_position_embeddings)
    wanted = [
        Setting("model_config", "logprobs_mode", "processed_logprobs", "--logprobs-mode"),
        Setting("model_config", "max_model_len", longest, "--max-model-len"),
    ]
    if policy.lora is not None:
        rank = allowed_rank(policy.lora.rank)
        wanted.append(Setting("lora_config", "max_lora_rank", rank, "--enable-lora --max-lora-rank"))
        wanted.append(Setting("parallel_config", "worker_extension_cls", EXTENSION, "--worker-extension-cls"))
    return wanted


def require(url: str, config: dict[str, Any], policy: GenerativeRMPolicy) -> None:
    """Compare a server's settings with what a policy needs.

    Args:
        url: Its address, for the message.
        config: Its ``vllm_config``.
        policy: What is to be served.

    Raises:
        ValueError: One is another; it says how the server is to be started.
    """
    for setting in _wanted(policy):
        value = (config.get(setting.section) or {}).get(setting.name)
        if not setting.fits(value):
            raise ValueError(
                f"vLLM at {url} has {setting.name} {value!r}: start it with {setting.option} {setting.needed}"
            )
