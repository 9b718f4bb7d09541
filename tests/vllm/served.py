"""A real ``vllm serve`` on localhost, for as long as it is needed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.experiments.made import REPOSITORY

ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(REPOSITORY),
}
OPTIONS = [
    "--host=127.0.0.1", "--enforce-eager", "--dtype=float32", "--enable-scale-out", "--max-model-len=1024",
    "--logprobs-mode=processed_logprobs", '--mm-processor-kwargs={"crop_to_patches": false}',
    '--limit-mm-per-prompt={"image": 8, "video": 0}', "--generation-config=vllm",
    "--disable-uvicorn-access-log", "--no-enable-chunked-prefill", "--max-num-batched-tokens=4096",
]  # fmt: skip


@dataclass(frozen=True)
class Served:
    """Where it is, what it serves, and its processes."""

    url: str
    model: Path
    process: subprocess.Popen[bytes]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes."""
        os.killpg(self.process.pid, number)


@contextlib.contextmanager
def serve(model: Path, folder: Path, *options: str, seconds: float = 600) -> Iterator[Served]:
    """Start a server and wait until it answers; it is gone afterwards, whatever happens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("vllm")), "serve", str(model), f"--port={port}"]
    log = folder / f"vllm_{port}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, *OPTIONS, *options],
            env=os.environ | ENVIRONMENT, stdout=file, stderr=file, cwd=folder, start_new_session=True,
        )  # fmt: skip
    server = Served(f"http://127.0.0.1:{port}", model, process)
    try:
        _await(server, log, time.monotonic() + seconds)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.signal(signal.SIGKILL)
        process.wait()


def _await(server: Served, log: Path, end: float) -> None:
    while True:
        try:
            with urllib.request.urlopen(f"{server.url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if server.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"vllm serve did not start: {log.read_text()[-3000:]}") from None
            time.sleep(0.5)
