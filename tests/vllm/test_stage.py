"""A stage with vLLM as its sampler, through its script: it learns, corrects for the sampler, and goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm")

import lit_msrl.cli
from lit_msrl.curves import read_curves
from lit_msrl.engines import VLLMEngine
from tests.experiments.made import UNSEEN, call, command

OPTIONS = [
    *UNSEEN, "--model.engine=VLLMEngine", "--model.engine.timeout=600", "--trainer.max_steps=3",
    "--model.loss.correction=token_truncate", "--trainer.log_every_n_steps=1", "--model.max_completion=12",
]  # fmt: skip


def weights(outputs: Path) -> dict[str, torch.Tensor]:
    path = lit_msrl.cli.newest(outputs, "stage3")
    assert path is not None
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Three steps of stage 3, in which vision trains."""
    outputs = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_msrl.rewards.RewardSum.__call__", _uneven(), raising=True)
        cli = call("stage3", command("stage3", outputs, *OPTIONS))
    assert isinstance(cli.model.engine, VLLMEngine)
    return outputs


def _uneven():
    from lit_msrl.rewards import RewardSum

    score = RewardSum.__call__

    def uneven(self, judgements, prompts):
        """Rewards that leave something to learn in every step."""
        scores = score(self, judgements, prompts)
        return scores._replace(total=torch.arange(len(judgements), dtype=torch.float32).remainder(3))

    return uneven


def test_the_sampler_stays_with_the_policy(whole: Path) -> None:
    curves = read_curves(whole / "stage3" / "version_0")
    assert list(curves["sampler/kl"][0]) == [0, 1, 2]
    assert max(abs(value) for value in curves["sampler/kl"][1]) < 1e-8
    assert min(curves["sampler/effective_sample_size"][1]) > 0.9999
    assert min(curves["rlvr/gradient_norm"][1]) > 0


def test_a_second_run_in_this_process_is_the_same(whole: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("lit_msrl.rewards.RewardSum.__call__", _uneven())
    call("stage3", command("stage3", tmp_path, *OPTIONS))
    expected, found = weights(whole), weights(tmp_path)
    assert all(found[name].equal(tensor) for name, tensor in expected.items())


def test_a_resumed_run_is_the_same(whole: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("lit_msrl.rewards.RewardSum.__call__", _uneven())
    call("stage3", command("stage3", tmp_path, *OPTIONS, "--trainer.max_steps=1"))
    call("stage3", command("stage3", tmp_path, *OPTIONS, "--ckpt_path=last"))
    expected, found = weights(whole), weights(tmp_path)
    assert all(found[name].equal(tensor) for name, tensor in expected.items())


def test_where_training_computes_in_16_bits_vllm_does(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("lit_msrl.rewards.RewardSum.__call__", _uneven())
    cli = call("stage3", command("stage3", tmp_path, *OPTIONS, "--trainer.precision=bf16-mixed"))
    assert cli.model.engine.sampler.dtype == torch.bfloat16
    kl = read_curves(tmp_path / "stage3" / "version_0")["sampler/kl"][1]
    assert 1e-8 < max(abs(value) for value in kl) < 1e-3
