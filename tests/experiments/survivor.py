"""Runs of a stage in processes of their own, to be killed."""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
import random
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from lit_msrl.cli import newest
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import Judgement
from tests.experiments.made import call

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["experiments.stage2", "experiments.cmkd"])  # imported once, forked often

VERDICT = Judgement(True, "A", None, {"think": "a red ball", "answer": "A"})  # so that CMKD has traces
PLACES = {
    "sampling": "lit_msrl.engines.hf._draw",
    "learning": "lit_msrl.policy.GenerativeRMPolicy.logprobs",
    "descending": "torch.optim.AdamW.step",
    "validating": "lit_msrl.stages.base.StageModule.validation_step",
    "flushing a checkpoint": "os.fsync",
    "renaming a checkpoint": "os.replace",
}


def run(
    stage: str, args: list[str], log: Path, *, place: str = "", passes: float = 0, number: int = 9
) -> int:
    """Run a stage; at the n-th pass of a place, or after so many seconds, it gets a signal. Its exit code."""
    process = PROCESSES.Process(target=_child, args=(stage, args, log, place, passes, number))
    process.start()
    process.join(300)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def _child(stage: str, args: list[str], log: Path, place: str, passes: float, number: int) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)

    mock.patch("lit_msrl.stages.cmkd.parse", return_value=VERDICT).start()

    mock.patch("lit_msrl.policy.GenerativeRMPolicy.logprobs", _noisy(GenerativeRMPolicy.logprobs)).start()

    def shoot() -> None:
        os.kill(os.getpid(), number)

    if place == "seconds":
        threading.Timer(passes, shoot).start()
    elif place:
        _aim(PLACES[place], int(passes), shoot)
    call(stage, args)


def _noisy(logprobs: Any) -> Any:
    """Let what is learned depend on every generator, as a backbone with dropout would."""

    def wrapped(*args: Any, **options: Any) -> Any:
        noise = random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002
        first, *others = logprobs(*args, **options)
        return (first * (1 + 0.01 * noise) if torch.is_grad_enabled() else first, *others)

    return wrapped


def _aim(name: str, passes: int, shoot: Any) -> None:
    original, seen = pkgutil.resolve_name(name), []

    def wrapped(*args: Any, **options: Any) -> Any:
        seen.append(1)
        if len(seen) == passes:
            shoot()
        return original(*args, **options)

    mock.patch(name, wrapped).start()


def final(outputs: Path, stage: str) -> dict[str, Any]:
    """All that the newest checkpoint holds."""
    path = newest(outputs, stage)
    assert path is not None
    return torch.load(path, weights_only=True)


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two checkpoints differ, bit for bit."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        pairs = [(key, a[key], b[key]) for key in a]
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = [(i, first, second) for i, (first, second) in enumerate(zip(a, b, strict=True))]
    else:
        same = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
        return [] if same else [f"{where}: {a!r} and {b!r}"[:200]]
    return [found for key, first, second in pairs for found in differences(first, second, f"{where}/{key}")]
