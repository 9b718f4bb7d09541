"""What a stage does to its process is undone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore SIGINT (Lightning ignores it after an interruption), the generator and the environment."""
    monkeypatch.delenv("LIT_MSRL_DEBUG", raising=False)
    environment, handler, generator = dict(os.environ), signal.getsignal(signal.SIGINT), torch.get_rng_state()
    yield
    torch.set_rng_state(generator)
    signal.signal(signal.SIGINT, handler)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
