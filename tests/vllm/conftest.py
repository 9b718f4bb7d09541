"""These run in an environment of their own, which `make test` makes; elsewhere they are passed over."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest

from experiments.export import export
from tests.experiments.made import call, command
from tests.vllm.served import Served, serve

collect_ignore_glob = ["test_*.py"]
if importlib.util.find_spec("vllm") is not None:
    collect_ignore_glob = []
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}  # nothing here needs the network
WITH_LORA = ["--enable-lora", "--max-lora-rank=8"]
WITH_LORA += ["--worker-extension-cls=lit_msrl.engines.vllm_sums.AdapterSums"]
TRAINED = ["--trainer.limit_val_batches=0", "--model.warmup_steps=0", "--model.policy.lora.rank=4"]


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of what `export.py` made of two steps of SFT, adapters merged."""
    folder = tmp_path_factory.mktemp("served")
    call("baseline_sft", command("baseline_sft", folder, *TRAINED))
    model = export(str(folder / "baseline_sft" / "version_0"), str(folder / "exported"))
    with serve(model, folder, *WITH_LORA) as server:
        yield server
