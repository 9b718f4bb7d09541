"""``vllm serve`` against the policy: an exported model, weights that change, a server that hangs."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import openai
import pytest
import torch
from torch.testing import assert_close

from experiments import evaluate
from lit_msrl.adapters import LoRA
from lit_msrl.cli import run
from lit_msrl.endpoint import message
from lit_msrl.engines import HFEngine, VLLMServerEngine
from lit_msrl.policy import GenerativeRMPolicy
from tests.benchmarks.made import JUDGEBENCH_ROWS
from tests.experiments.made import write_rows
from tests.vllm.made import PROMPTS, draw, error, step
from tests.vllm.served import Served


def policy_of(served: Served, **options) -> GenerativeRMPolicy:
    policy = GenerativeRMPolicy(str(served.model), max_length=1024, **options).eval()
    policy.train_only(["language"] if policy.adapted else ["language", "projector", "vision"])
    assert int(policy.encode(PROMPTS[2:]).attention_mask.sum()) > 128, "longer than a block of the cache"
    return policy


def test_an_exported_model_chats_as_transformers_says(served: Served) -> None:
    """Before anything is pushed, so it must be the first test here."""
    policy = policy_of(served)
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    for prompt in PROMPTS[:2]:
        answer = client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=[message(prompt.text, prompt.media)],  # type: ignore[list-item]
            max_completion_tokens=16, temperature=0.0, logprobs=True,
            logit_bias={str(int(token)): -100 for token in policy.suppressed},
            extra_body={"return_token_ids": True},
        )  # fmt: skip
        batch = policy.encode([prompt])
        assert answer.prompt_token_ids == batch.input_ids[0].tolist()  # type: ignore[attr-defined]
        written = torch.tensor([answer.choices[0].token_ids])  # type: ignore[attr-defined]
        expected, _ = policy.logprobs(batch, written, torch.ones_like(written))
        content = answer.choices[0].logprobs.content  # type: ignore[union-attr]
        found = torch.tensor([token.logprob for token in content or ()])
        assert len(found) > 4
        assert_close(found, expected[0].detach(), atol=1e-4, rtol=0)


def test_weights_follow_the_policy(served: Served) -> None:
    torch.manual_seed(0)
    policy, engine = policy_of(served), VLLMServerEngine(served.url, timeout=300)
    first = draw(engine, policy)
    assert error(policy, first) < 1e-4
    step(policy)
    assert error(policy, first) > 0.1, "the step is seen"
    second = draw(engine, policy)
    assert error(policy, second) < 1e-4
    assert not draw(engine, policy, seed=2).ids.equal(second.ids)
    again = draw(VLLMServerEngine(served.url, check=False, timeout=300), policy)
    assert again.ids.equal(second.ids), "a function of weights, prompts and seed"


def test_sampling_options_are_the_embedded_samplers(served: Served) -> None:
    policy, engine = policy_of(served), VLLMServerEngine(served.url, timeout=300)
    ours = draw(HFEngine(), policy, group_size=1, temperature=0.0)
    greedy = draw(engine, policy, group_size=1, temperature=0.0)
    assert greedy.ids.equal(ours.ids)
    assert_close(greedy.logprobs, ours.logprobs, atol=1e-4, rtol=0)
    assert error(policy, draw(engine, policy, temperature=1.5), temperature=1.5) < 1e-4
    assert draw(engine, policy, top_k=1).logprobs.abs().max() < 1e-6, "one token has all that is left"
    with torch.no_grad():
        policy.head.weight[policy.suppressed] *= 6
    drawn = draw(engine, policy, group_size=8, temperature=2.0)
    assert not torch.isin(drawn.ids[drawn.mask], policy.suppressed).any()


def test_adapters_follow_the_policy_alone(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    policy, engine = policy_of(served, lora=LoRA(4, 8)), VLLMServerEngine(served.url, timeout=300)
    assert error(policy, draw(engine, policy)) < 1e-4
    monkeypatch.setattr(engine, "send_model", None)  # not again
    for _ in range(2):
        step(policy)
        drawn = draw(engine, policy)
        assert error(policy, drawn) < 1e-4
        with policy.adapters_off():
            assert error(policy, drawn) > 0.1
    names = [model.id for model in openai.OpenAI(base_url=f"{served.url}/v1", api_key="none").models.list()]
    assert names == [str(served.model), engine.version], "old adapters are gone"


def test_another_run_on_the_same_server_is_found_out(served: Served) -> None:
    policy, engine = policy_of(served), VLLMServerEngine(served.url, timeout=300)
    draw(engine, policy)
    draw(VLLMServerEngine(served.url, check=False, timeout=300), policy_of(served))
    with pytest.raises(ValueError, match="or another run uses it; start it again"):
        draw(engine, policy)


def test_a_server_that_hangs_is_given_up(served: Served) -> None:
    policy, engine = policy_of(served), VLLMServerEngine(served.url, check=False, timeout=300)
    draw(engine, policy)
    hasty = VLLMServerEngine(served.url, timeout=2)
    served.signal(signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError, match=r"has not finished its settings .* after 2 s"):
            draw(hasty, policy)
    finally:
        served.signal(signal.SIGCONT)
    assert error(policy, draw(engine, policy)) < 1e-4, "it goes on where it was"


def test_a_benchmark_is_judged_through_it(served: Served, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "judgebench.jsonl", *JUDGEBENCH_ROWS)
    asked = ["--benchmark=judgebench", f"--data={data}", f"--out={tmp_path}/out", f"--model={served.model}"]
    asked += [f"--endpoint={served.url}/v1", "--style=compact", "--max_completion=32", "--retries=0"]
    run(lambda: evaluate.main(asked))
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert len(records) == 10
    assert all(record["tokens"] > 0 for record in records)
    assert (tmp_path / "out" / "scores.json").is_file()
