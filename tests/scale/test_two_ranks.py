"""Two processes do what one does: DDP and FSDP2 (gloo, CPU), all weights and LoRA."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lit_msrl.evaluation import load_weights
from lit_msrl.losses import GRPOLoss
from tests.scale import two_ranks
from tests.scale.two_ranks import CLIP

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
KINDS = ["ddp_full", "ddp_lora", "fsdp_full", "fsdp_lora"]
Found = dict[str, Any]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(module: str, *args: str, logs: Path) -> list[subprocess.Popen]:
    """Two ranks that run a module; each writes ``log_<rank>``."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "NODE_RANK": "0",
    }
    ranks = []
    for rank in range(2):
        environment = os.environ | shared | {"LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", module, *args]
        with (logs / f"log_{rank}").open("w") as log:
            ranks.append(
                subprocess.Popen(
                    command, env=environment, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT
                )
            )
    return ranks


def end(ranks: list[subprocess.Popen]) -> None:
    """End what may hang, because the other is gone."""
    for rank in ranks:
        rank.kill()
        rank.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ranks have left their checkpoints and what they saw."""
    folder = tmp_path_factory.mktemp("two_ranks")
    ranks = start("tests.scale.two_ranks", str(folder), logs=folder)
    try:
        codes = [rank.wait(timeout=600) for rank in ranks]
    finally:
        end(ranks)
    logs = "\n".join((folder / f"log_{rank}").read_text()[-3000:] for rank in range(2))
    assert codes == [0, 0], logs
    return folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_rank_that_hangs_ends_the_others_with_one_line(strategy: str, tmp_path: Path) -> None:
    ranks = start("tests.scale.hanging", strategy, str(tmp_path), logs=tmp_path)
    try:
        code = ranks[0].wait(timeout=300)
        assert ranks[1].poll() is None, "it still sleeps"
    finally:
        end(ranks)
    log = (tmp_path / "log_0").read_text()
    assert code == 1, log
    assert "second step" in log, "the first step went well"
    (line,) = [line for line in log.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: another rank died or hangs (")
    assert line.endswith("; look at its output, and go on with --ckpt_path=last")
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[Found]:
    return [torch.load(folder / f"rank_{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """The same in one process."""
    folder = tmp_path_factory.mktemp("one")
    steps = {
        name: two_ranks.steps(folder, "auto", 1, checkpoint=f"{name}.ckpt", lora=name == "lora")
        for name in ("full", "lora")
    }
    terms = {"loss": GRPOLoss(kl_coef=0.1, entropy_coef=0.01), "num_iterations": 2}
    steps["terms"] = two_ranks.steps(folder, "auto", 1, checkpoint="terms.ckpt", **terms)
    return steps


def expected(one: dict[str, Found], kind: str) -> Found:
    return one.get(kind.split("_")[1], one["full"])


def assert_alike(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(found[name], tensor, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", [*KINDS, "fsdp_terms", "fsdp_offload"])
def test_the_gradient_is_that_of_one_process(ranks, one, kind) -> None:
    """Though one rank has only texts and the other only pictures, and some completions are empty."""
    wanted = expected(one, kind)["gradients"]
    assert len(wanted) == 2
    for step, gradient in enumerate(wanted):
        assert max(float(part.abs().max()) for part in gradient.values()) > 0.1
        for rank in ranks:
            assert_alike(rank[kind]["gradients"][step], gradient, atol=1e-5)
    vision = [name for name in wanted[0] if "vision_tower" in name]
    assert bool(vision) == (kind not in ("ddp_lora", "fsdp_lora"))


@pytest.mark.parametrize("kind", [*KINDS, "fsdp_offload"])
def test_clipping_knows_the_whole_norm(ranks, one, kind) -> None:
    for step, norms in enumerate(expected(one, kind)["norms"]):
        assert norms["rlvr/gradient_norm"] > CLIP
        for rank in ranks:
            assert rank[kind]["norms"][step] == pytest.approx(norms, rel=1e-5)
    for rank in ranks:
        assert_alike(rank[kind]["weights"], expected(one, kind)["weights"], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_while_sharded(ranks, one, kind) -> None:
    """The ranks write 3 and 9 tokens, and nobody waits."""
    found = ranks[0][kind]["samples"] + ranks[1][kind]["samples"]
    texts, text_logprobs, pictures, picture_logprobs = expected(one, kind)["samples"]
    assert (texts.shape[1], pictures.shape[1]) == (3, 9)
    assert found[0].equal(texts)
    assert found[2].equal(pictures)
    assert_close(found[1], text_logprobs, atol=1e-5, rtol=0)
    assert_close(found[3], picture_logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_where_the_other_did(ranks, kind) -> None:
    """From a folder of both ranks' parts (FSDP2), or from a file (DDP)."""
    for rank in ranks:
        assert_alike(rank[f"{kind}_resumed"], rank[kind]["weights"], atol=0)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_run_resumed_from_one_file_ends_there_too(folder, ranks, kind) -> None:
    assert (folder / f"whole_{kind}.ckpt").is_file()
    for rank in ranks:
        assert_alike(rank[f"whole_{kind}.ckpt"], rank[f"fsdp_{kind}"]["weights"], atol=0)


@pytest.mark.parametrize(
    ("checkpoint", "is_folder"),
    [
        ("ddp_full", False),
        ("fsdp_full", True),
        ("fsdp_lora", True),
        ("whole_full", False),
        ("whole_lora", False),
    ],
)
def test_a_checkpoint_of_many_is_a_start_for_one(folder, tmp_path, checkpoint: str, is_folder: bool) -> None:
    path = folder / f"{checkpoint}.ckpt"
    assert path.is_dir() == is_folder
    lora = checkpoint.endswith("lora")
    module = two_ranks.stage(lora=lora)
    assert load_weights(module.policy, path) == "spy"
    two_ranks.first_step(tmp_path, "auto", 1, checkpoint="one.ckpt", lora=lora)
    alone = two_ranks.stage(lora=lora)
    load_weights(alone.policy, tmp_path / "one.ckpt")
    assert_alike(two_ranks.weights(module), two_ranks.weights(alone), atol=1e-6)
    untouched = two_ranks.weights(two_ranks.stage(lora=lora))
    assert any(not tensor.equal(untouched[name]) for name, tensor in two_ranks.weights(module).items())


def test_adapters_are_all_that_is_saved(folder) -> None:
    weights = torch.load(folder / "whole_lora.ckpt", weights_only=True)["state_dict"]
    assert len(weights) == 28  # two matrices on each of 7 projections of 2 layers
    assert all("lora_" in name for name in weights)


@pytest.mark.parametrize("kind", KINDS)
def test_data_are_dealt_without_overlap_or_loss(ranks, one, kind) -> None:
    together = [first + second for first, second in zip(*(rank[kind]["seen"] for rank in ranks), strict=True)]
    assert together == expected(one, kind)["seen"]
    assert all(rank[kind]["groups"] == [(2, 6), (2, 6)] for rank in ranks)  # whole groups of three
    first, second = ranks[0][kind]["seen"][0], ranks[1][kind]["seen"][0]
    assert all("/text/" in name for name in first)
    assert all("/image generation/" in name for name in second)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_an_epoch_with_replay(ranks, tmp_path, kind) -> None:
    """Every batch of every rank holds 4 new and 1 old; all new examples are shown once, in the same order."""
    seen = [rank[f"{kind}_epoch"] for rank in ranks]
    assert [len(steps) for steps in seen] == [3, 3]
    assert all(sum("/text/" in name for name in batch) == 1 for steps in seen for batch in steps)
    together = [first + second for first, second in zip(*seen, strict=True)]
    assert together == two_ranks.epoch(tmp_path, "auto", 1)
    new = [name for batch in together for name in batch if "/text/" not in name]
    assert len(set(new)) == len(new) == 24


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_imitation_counts_tokens_over_ranks(ranks, tmp_path, kind) -> None:
    """Though ranks hold different numbers of tokens, and one of them none at all."""
    wanted = two_ranks.imitate(tmp_path, "auto", 1)
    for rank in ranks:
        found = rank[f"{kind}_imitation"]
        assert found["losses"] == pytest.approx(wanted["losses"], rel=1e-5)
        for got, gradient in zip(found["gradients"], wanted["gradients"], strict=True):
            assert_alike(got, gradient, atol=1e-5)


def test_computing_in_bfloat16_is_near(ranks, one) -> None:
    """Gathered and computed in 16 bits; weights, gradients and the optimizer keep 32."""
    found, wanted = ranks[0]["fsdp_bfloat16"], one["full"]
    assert all(tensor.dtype == torch.float32 for tensor in found["weights"].values())
    assert found["norms"][0]["rlvr/gradient_norm"] == pytest.approx(
        wanted["norms"][0]["rlvr/gradient_norm"], rel=0.05
    )
    difference = [
        (part - wanted["gradients"][0][name]).abs().max() for name, part in found["gradients"][0].items()
    ]
    assert 1e-5 < max(difference) < 0.05
