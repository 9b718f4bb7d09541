"""A step that runs out of memory goes on with half as much at once, and learns the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.stages import SFTModule
from tests.callbacks.test_non_finite import data, imitating
from tests.conftest import tiny_internvl
from tests.stages.test_rlvr import Uneven, module, trainer


class Small:
    """A memory that holds so many prompts with gradient."""

    def __init__(self, patch: pytest.MonkeyPatch, prompts: int) -> None:
        self.prompts, self.refused, original = prompts, 0, GenerativeRMPolicy.logprobs

        def logprobs(policy: Any, batch: Any, *args: Any, **options: Any) -> Any:
            if torch.is_grad_enabled() and len(batch) > self.prompts:
                self.refused += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            return original(policy, batch, *args, **options)

        patch.setattr(GenerativeRMPolicy, "logprobs", logprobs)


def made(kind: str, **options: Any) -> Any:
    if kind == "sft":
        return imitating()
    return module(tiny_internvl(seed=1), reward=Uneven(), micro_batch_size=4, **options)


def trained(kind: str, folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    stage = made(kind)
    trainer(folder, max_steps=2).fit(stage, data())
    return stage, {name: p.detach() for name, p in stage.policy.named_parameters()}


@pytest.mark.parametrize("kind", ["rlvr", "sft"])
def test_half_as_much_at_once_learns_the_same(kind: str, tmp_path: Path, monkeypatch, recwarn) -> None:
    _, whole = trained(kind, tmp_path)
    memory = Small(monkeypatch, 2)
    stage, halves = trained(kind, tmp_path)
    assert any("out of memory in step 0; going on with" in str(warning.message) for warning in recwarn)
    assert memory.refused == 1  # the second step knows
    assert stage.in_halves if kind == "sft" else stage.micro_batches.groups == 2
    for name, parameter in whole.items():
        assert_close(halves[name], parameter, atol=1e-3 if kind == "sft" else 1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["rlvr", "sft"])
@pytest.mark.filterwarnings("ignore:out of memory in step 0:UserWarning")
def test_a_second_time_ends_the_run(kind: str, tmp_path: Path, monkeypatch) -> None:
    memory = Small(monkeypatch, 1)
    with pytest.raises(torch.OutOfMemoryError):
        trained(kind, tmp_path)
    assert memory.refused == 2


def test_of_one_prompt_at_a_time_there_is_no_half(tmp_path: Path, monkeypatch) -> None:
    memory = Small(monkeypatch, 0)
    stage = module(tiny_internvl(seed=1), reward=Uneven(), micro_batch_size=1)
    with pytest.raises(torch.OutOfMemoryError):
        trainer(tmp_path).fit(stage, data())
    assert memory.refused == 1


def test_accumulated_gradients_are_not_thrown_away(tmp_path: Path, monkeypatch) -> None:
    Small(monkeypatch, 2)
    stage = made("sft")
    assert isinstance(stage, SFTModule)
    with pytest.raises(torch.OutOfMemoryError):
        trainer(tmp_path, accumulate_grad_batches=2).fit(stage, data())


@pytest.mark.filterwarnings("ignore:out of memory in step 0:UserWarning")
def test_what_was_learned_before_memory_ran_out_does_not_count_twice(tmp_path: Path, monkeypatch) -> None:
    def moved(folder: Path) -> dict[str, torch.Tensor]:
        stage = module(tiny_internvl(seed=1), reward=Uneven(), micro_batch_size=2)
        trainer(folder).fit(stage, data())
        return {name: p.detach() for name, p in stage.policy.named_parameters()}

    whole, calls, original = moved(tmp_path), [], GenerativeRMPolicy.logprobs

    def logprobs(*args: Any, **options: Any) -> Any:
        calls.extend([1] * torch.is_grad_enabled())
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(*args, **options)

    monkeypatch.setattr(GenerativeRMPolicy, "logprobs", logprobs)
    again = moved(tmp_path)
    assert len(calls) == 2 + 4
    for name, parameter in whole.items():
        assert_close(again[name], parameter, atol=1e-5, rtol=0)
