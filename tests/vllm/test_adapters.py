"""Adapters go to vLLM alone, beside a base in full precision; nothing is merged."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from lit_msrl.adapters import NF4, LoRA
from lit_msrl.engines import VLLMEngine
from lit_msrl.engines.vllm_sampler import Sampler
from lit_msrl.policy import GenerativeRMPolicy
from tests.vllm.made import draw, error, step


@pytest.fixture(scope="module")
def engine() -> VLLMEngine:
    return VLLMEngine(timeout=600)


@pytest.fixture(params=[None, NF4()], ids=["lora", "qlora"])
def policy(request) -> GenerativeRMPolicy:
    policy = GenerativeRMPolicy("tiny", LoRA(4, 12), request.param, max_length=1024)
    policy.train_only(["language"])
    return policy


def test_adapters_alone_follow_a_step(policy, engine, monkeypatch) -> None:
    assert error(policy, draw(engine, policy)) < 1e-4
    monkeypatch.setattr(engine, "send_model", None)
    for _ in range(2):
        step(policy)
        monkeypatch.setattr(engine, "synchronise", lambda policy: False)
        assert error(policy, draw(engine, policy)) > 0.01, "nothing was sent"
        monkeypatch.delattr(engine, "synchronise")
        assert error(policy, draw(engine, policy)) < 1e-4


def test_other_weights_that_train_are_sent_too(engine) -> None:
    policy = GenerativeRMPolicy("tiny", LoRA(4, 12), max_length=1024)
    policy.train_only(["language", "projector"])
    draw(engine, policy)
    step(policy)
    assert error(policy, draw(engine, policy)) < 1e-4


def test_adapters_that_do_not_arrive_are_missed(policy, engine, monkeypatch) -> None:
    draw(engine, policy)
    before = engine.adapter
    step(policy)
    monkeypatch.setattr(Sampler, "adapt", lambda sampler, folder, number: before)
    held = Sampler.held_adapter
    monkeypatch.setattr(Sampler, "held_adapter", lambda sampler, number: held(sampler, before.lora_int_id))
    with pytest.raises(ValueError, match="lora_. adds up to"):
        draw(engine, policy)
