"""What of the vLLM engine needs no vLLM: giving up, refusing, reading what was written."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import queue
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lit_msrl.engines import Sampling, VLLMEngine, together, vllm_sampler
from lit_msrl.engines.together import own
from lit_msrl.engines.vllm import _request
from lit_msrl.engines.vllm_requests import completions
from lit_msrl.engines.vllm_sampler import Sampler
from lit_msrl.engines.vllm_sums import Sum, held_weights
from lit_msrl.policy import GenerativeRMPolicy
from tests.conftest import picture_prompt, text_prompt, tiny_internvl


def test_a_call_that_hangs_is_given_up(tmp_path) -> None:
    sampler, released = Sampler(tmp_path, "key", {}), threading.Event()
    Sampler.running, sampler.timeout = sampler, 0.05
    with pytest.raises(TimeoutError, match="vLLM has not finished completions after 0.05 s"):
        sampler.call("completions", released.wait)
    assert Sampler.running is None
    released.set()
    sampler.timeout = 30
    assert sampler.call("the next", lambda: 3) == 3


def test_an_error_in_vllm_is_raised_where_it_was_called(tmp_path) -> None:
    sampler = Sampler(tmp_path, "key", {})
    sampler.timeout = 30
    with pytest.raises(ZeroDivisionError):
        sampler.call("dividing", lambda: 1 // 0)


def test_ctrl_c_is_not_held_up_by_what_still_runs(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(queue.SimpleQueue):
        def get(self, block: bool = True, timeout: float | None = None) -> None:
            raise KeyboardInterrupt

    sampler, released, unregistered = Sampler(tmp_path, "key", {}), threading.Event(), []
    Sampler.running = sampler
    monkeypatch.setattr(atexit, "unregister", unregistered.append)
    monkeypatch.setattr(queue, "SimpleQueue", Interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            sampler.call("completions", released.wait)
        assert Sampler.running is None
        assert unregistered == [sampler.close], "nothing waits at exit"
    finally:
        released.set()
        Sampler.running = None


@pytest.mark.parametrize("ends", [contextlib.nullcontext(), pytest.raises(RuntimeError, match="no start")])
def test_a_start_leaves_the_environment_and_torch_as_they_were(ends, tmp_path, monkeypatch) -> None:
    seen, set_num_threads = {}, torch.set_num_threads

    def made(**options: object) -> None:
        seen.update(os.environ)
        torch.set_num_threads = None  # type: ignore[assignment]
        if not isinstance(ends, contextlib.nullcontext):
            raise RuntimeError("no start")

    monkeypatch.setattr(vllm_sampler, "register", lambda: None)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=made))
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    sampler, before = Sampler(tmp_path, "key", {}), dict(os.environ)
    try:
        with ends:
            sampler._start({"LOCAL_RANK": "0", "RANK": "0"}, torch.device("cpu"))
        assert torch.set_num_threads is set_num_threads
    finally:
        torch.set_num_threads = set_num_threads
    assert (seen["LOCAL_RANK"], seen["RANK"], seen["VLLM_NO_USAGE_STATS"]) == ("0", "0", "1")
    assert seen["VLLM_LOGGING_LEVEL"] == "DEBUG", "the user's"
    assert dict(os.environ) == before


def test_vllm_gets_the_device_of_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_internvl()
    assert "device_ids" not in VLLMEngine()._options(policy)
    monkeypatch.setattr(GenerativeRMPolicy, "device", torch.device("cuda:1"))
    options = VLLMEngine()._options(policy)
    assert options["device_ids"] == [1]
    assert options["enable_sleep_mode"]


def test_weights_are_gone_through_even_if_vllm_takes_none(tmp_path) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise ValueError("no place")

    sampler, weights = Sampler(tmp_path, "key", {}), iter([("head", torch.ones(1))] * 2)
    sampler.llm = SimpleNamespace(collective_rpc=refuse)
    with pytest.raises(ValueError, match="no place"):
        sampler.reload(weights)
    assert not list(weights), "else the other ranks would wait for this one"


def test_without_vllm_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    policy, prompts = tiny_internvl(), [text_prompt()]
    with pytest.raises(ValueError, match=r"pip install 'lit-msrl\[vllm\]'"):
        VLLMEngine().generate(policy, prompts, policy.encode(prompts), sampling=Sampling(2, 4), seed=0)


def test_a_prompt_goes_unexpanded_with_its_pictures() -> None:
    policy, prompt = tiny_internvl(), picture_prompt()
    request = _request(policy, prompt)
    mark = policy.model.config.image_token_id
    assert request["prompt_token_ids"].count(mark) == 2
    assert request["multi_modal_data"]["image"] == [medium.frames[0] for medium in prompt.media]
    assert int((policy.encode([prompt]).input_ids == mark).sum()) == 2 * policy.model.config.image_seq_length
    assert _request(policy, text_prompt()).keys() == {"prompt_token_ids"}


def test_what_was_written_is_padded_on_the_right() -> None:
    policy = tiny_internvl()
    drawn = completions(policy, [[7, 9], [8]], [-1.0, -2.0, -3.0])
    assert drawn.ids.tolist() == [[7, 9], [8, policy.tokenizer.pad_token_id]]
    assert drawn.mask.tolist() == [[True, True], [True, False]]
    assert drawn.logprobs.tolist() == [[-1.0, -2.0], [-3.0, 0.0]]


def test_a_rank_keeps_its_own_completions() -> None:
    policy = tiny_internvl()
    everyones = completions(policy, [[7, 9, 8], [8], [5, 6]], [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])
    kept = own(everyones, first=1, count=2)
    assert kept.ids.tolist() == [[8, policy.tokenizer.pad_token_id], [5, 6]]
    assert kept.mask.tolist() == [[True, False], [True, True]]
    assert kept.logprobs.tolist() == [[-4.0, 0.0], [-5.0, -6.0]]


@pytest.mark.parametrize("machines", [["node1", "node1"], ["node1", "node2"]])
def test_one_vllm_is_on_one_machine(machines, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {}

    def new_subgroups(size: int, **options: object) -> tuple[object, list[object]]:
        made.update(options)
        return object(), []

    monkeypatch.setattr(together.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(together.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(together.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(together.dist, "new_subgroups", new_subgroups)
    monkeypatch.setattr(
        together.dist, "all_gather_object", lambda found, one, group: found.__setitem__(slice(2), machines)
    )
    apart = pytest.raises(ValueError, match="tensor_parallel=2 puts one vLLM on node1 and node2")
    with apart if len(set(machines)) == 2 else contextlib.nullcontext():
        assert together.Together(2, timeout=60).place == 1
    assert made["timeout"].total_seconds() == 60


def test_log_probabilities_keep_their_digits_under_bf16_true() -> None:
    policy, before = tiny_internvl(), torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # as Lightning does
    try:
        drawn = completions(policy, [[7]], [-1.2345678])
    finally:
        torch.set_default_dtype(before)
    assert drawn.logprobs.item() == pytest.approx(-1.2345678, abs=1e-7)


def test_sums_of_packed_weights_are_those_of_their_parts() -> None:
    model, packed = _Served(), nn.Linear(4, 12, bias=False)
    model.layer.qkv_proj = packed
    names = [f"model.layer.{part}_proj.weight" for part in "qkv"] + ["model.norm.weight"]
    held = held_weights(model, names)
    assert {name: one.copies for name, one in held.items()} == {
        "layer.qkv_proj.weight": dict.fromkeys(names[:3], 1),
        "norm.weight": {names[3]: 1},
    }
    each = [Sum.of([part]) for part in packed.weight.detach().split(4)]
    sums = Sum.together(each)
    assert Sum.together([each[0].times(2), each[1]]).size == pytest.approx(2 * each[0].size + each[1].size)
    assert held["layer.qkv_proj.weight"].total == pytest.approx(sums.total, abs=1e-12)
    with pytest.raises(ValueError, match="no place for model.layer.z_proj.weight"):
        held_weights(model, ["model.layer.z_proj.weight"])
    with pytest.raises(ValueError, match=r"a weight that was not sent: norm\.weight"):
        held_weights(model, names[:3])


def test_other_sums_are_refused() -> None:
    sent = Sum.of([torch.tensor([3.0, -1.0])])
    assert sent == (2.0, 4.0)
    sent.compare(2.0 + 3e-12, 1e-12, "other weights: head", "stop")
    with pytest.raises(ValueError, match=r"other weights: head adds up to 2\.0001, not to 2; stop"):
        sent.compare(2.0001, 1e-12, "other weights: head", "stop")
    with pytest.raises(ValueError, match="head adds up to nan"):
        sent.compare(float("nan"), 1e-12, "other weights: head", "stop")


class _Served(nn.Module):
    """A model as vLLM packs it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Module(), nn.LayerNorm(4, bias=False)
        self.hf_to_vllm_mapper = SimpleNamespace(get_rename_mapper=lambda: self)

    def apply_list(self, names: list[str]) -> list[str]:
        return [name.removeprefix("model.") for name in names]

    def forward(self) -> torch.Tensor:
        raise NotImplementedError
