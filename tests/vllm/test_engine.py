"""vLLM against the policy: text, pictures and clips, weights that change, what is drawn and how.

One vLLM serves all tests on models of one shape; it takes the weights of whichever policy asks.
"""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("vllm")

import lit_msrl.engines.synced
import lit_msrl.engines.vllm
import lit_msrl.engines.vllm_requests
from lit_msrl.engines import HFEngine, VLLMEngine
from lit_msrl.engines.vllm_sampler import Sampler
from lit_msrl.policy import GenerativeRMPolicy
from tests.conftest import text_prompt
from tests.vllm.made import LONG, PROMPTS, draw, error, garbled, model, step


@pytest.fixture
def policy() -> GenerativeRMPolicy:
    policy = model()
    policy.train_only(["language", "projector", "vision"])
    assert int(policy.encode(PROMPTS[2:3]).attention_mask.sum()) > 128, "longer than a block of the cache"
    return policy


@pytest.fixture
def engine() -> VLLMEngine:
    return VLLMEngine(timeout=600)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_the_policys(policy, engine, temperature: float) -> None:
    drawn = draw(engine, policy, temperature=temperature)
    assert drawn.ids.shape == drawn.mask.shape == (12, 12)
    assert error(policy, drawn, temperature=temperature) < 1e-4


def test_more_prompts_than_are_read_at_once(policy, engine) -> None:
    prompts = [text_prompt(str(i), f"{i} {LONG}") for i in range(40)]
    assert int(policy.encode(prompts).attention_mask.sum()) > 2 * 4096
    drawn = draw(engine, policy, prompts, group_size=2, max_length=3)
    assert error(policy, drawn, prompts) < 1e-4


def test_greedy_is_what_the_policys_own_sampler_writes(policy, engine) -> None:
    ours = draw(HFEngine(), policy, group_size=1, temperature=0.0)
    drawn = draw(engine, policy, group_size=1, temperature=0.0)
    assert drawn.ids.equal(ours.ids)
    assert_close(drawn.logprobs, ours.logprobs, atol=1e-4, rtol=0)


def test_truncated_sampling_tells_the_probability_it_drew_with(policy, engine) -> None:
    assert (draw(engine, policy, top_k=1).logprobs.abs() < 1e-6).all()
    likely = draw(engine, policy, top_p=0.5, seed=3)
    whole, _ = policy.logprobs(policy.encode(PROMPTS), likely.ids, likely.mask)
    gain = (likely.logprobs - whole)[likely.mask]  # the logarithm of one over what was left in
    assert (gain > -1e-4).all()
    assert (gain < 0.694).all()


def test_a_draw_depends_on_weights_prompts_and_seed_alone(policy, engine) -> None:
    first = draw(engine, policy, seed=1)
    draw(engine, policy, seed=2)
    again, other = draw(VLLMEngine(check=False), policy, seed=1), draw(engine, policy, seed=2)
    assert first.ids.equal(again.ids)
    assert first.logprobs.equal(again.logprobs)
    assert not first.ids.equal(other.ids)
    for group in first.ids.view(len(PROMPTS), 3, -1):
        assert len(group.unique(dim=0)) == 3


def test_completions_end_with_the_end_of_turn(policy, engine) -> None:
    eos = policy.tokenizer.eos_token_id
    with torch.no_grad():
        policy.head.weight[eos] *= 3  # ends come often
    drawn = draw(engine, policy, group_size=8, max_length=20)
    lengths = drawn.mask.sum(1)
    assert lengths.unique().numel() > 2
    for row, length in zip(drawn.ids, lengths, strict=True):
        assert eos not in row[: length - 1]
        assert length == 20 or row[length - 1] == eos
    assert error(policy, drawn) < 1e-4


def test_control_and_picture_tokens_are_never_drawn(policy, engine, monkeypatch) -> None:
    with torch.no_grad():
        policy.head.weight[policy.suppressed] *= 6
    drawn = draw(engine, policy, group_size=8, max_length=20)
    assert not torch.isin(drawn.ids[drawn.mask], policy.suppressed).any()
    assert error(policy, drawn) < 1e-4
    monkeypatch.setattr(lit_msrl.engines.vllm_requests, "SUPPRESSED", 0.0)
    free = draw(VLLMEngine(check=False), policy, [PROMPTS[0]], group_size=8, max_length=20)
    assert torch.isin(free.ids[free.mask], policy.suppressed).any(), "they would be"


def test_weights_are_as_after_the_step(policy, engine, monkeypatch) -> None:
    draw(engine, policy)
    step(policy)
    monkeypatch.setattr(engine, "synchronise", lambda policy: False)
    assert error(policy, draw(engine, policy)) > 0.01, "nothing was sent"
    monkeypatch.undo()
    assert error(policy, draw(engine, policy)) < 1e-4


def test_what_the_prefix_cache_holds_is_forgotten(policy, engine, monkeypatch) -> None:
    assert error(policy, draw(engine, policy)) < 1e-4
    assert Sampler.running is not None
    step(policy)
    monkeypatch.setattr(Sampler.running.llm, "reset_prefix_cache", lambda: True)
    engine.check = False
    engine.checks = None
    assert error(policy, draw(engine, policy)) > 0.01, "the old prompt was read"
    monkeypatch.undo()
    assert error(policy, draw(engine, policy)) < 1e-4


@pytest.mark.parametrize("lost", ["lm_head.weight", "projector.layer_norm.weight", "k_proj.bias"])
def test_weights_that_are_not_sent_are_missed(policy, engine, monkeypatch, lost: str) -> None:
    draw(engine, policy, PROMPTS[:1])
    step(policy)
    send = lit_msrl.engines.synced.model_weights

    def fewer(policy):
        return ((name, tensor) for name, tensor in send(policy) if lost not in name)

    monkeypatch.setattr(lit_msrl.engines.synced, "model_weights", fewer)
    with pytest.raises(ValueError, match=r"not sent|holds other weights"):
        draw(engine, policy, PROMPTS[:1])


def test_weights_that_change_on_the_way_are_found(policy, engine, monkeypatch) -> None:
    draw(engine, policy, PROMPTS[:1])
    step(policy)
    monkeypatch.setattr(Sampler, "reload", garbled(Sampler.reload))
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.gate_up_proj\.weight adds up to"):
        draw(engine, policy, PROMPTS[:1])


def test_media_that_are_left_out_are_missed(policy, monkeypatch) -> None:
    request = lit_msrl.engines.vllm._request

    def blind(policy, prompt):
        return {"prompt_token_ids": request(policy, prompt)["prompt_token_ids"]}

    monkeypatch.setattr(lit_msrl.engines.vllm, "_request", blind)
    with pytest.raises(ValueError, match="the engine does not compute what is trained"):
        draw(VLLMEngine(), policy)


def test_the_embedded_model_with_its_output_bias(engine) -> None:
    policy = GenerativeRMPolicy("tiny", max_length=1024)
    assert (
        policy.model.get_parameter("model.language_model.layers.0.self_attn.o_proj.bias").abs().max() > 0.01
    )
    assert error(policy, draw(engine, policy)) < 1e-4
