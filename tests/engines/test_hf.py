"""Sampling a group as one row, against transformers and against the policy's own log-probabilities."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare
from torch.testing import assert_close
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from lit_msrl.engines import HFEngine, Sampling
from lit_msrl.engines.hf import _draw
from lit_msrl.policy import GenerativeRMPolicy
from tests.conftest import picture_prompt, text_prompt, tiny_internvl

PROMPTS = [
    text_prompt("short"),
    picture_prompt(1),
    picture_prompt(2, "a red ball and a green hat and two dogs and the sky"),
]


def draw(policy: GenerativeRMPolicy, prompts=PROMPTS, seed: int = 0, **options):
    return HFEngine().generate(
        policy, prompts, policy.encode(prompts), sampling=Sampling(**options), seed=seed
    )


def test_logprobs_of_the_sampler_are_the_policys(policy: GenerativeRMPolicy) -> None:
    drawn = draw(policy, group_size=4, max_length=12)
    learned, _ = policy.logprobs(policy.encode(PROMPTS), drawn.ids, drawn.mask)
    assert drawn.ids.shape[0] == 12
    assert_close(drawn.logprobs, learned.detach(), atol=1e-5, rtol=0)


def test_greedy_is_what_transformers_generates(policy: GenerativeRMPolicy) -> None:
    drawn = draw(policy, PROMPTS[1:2], group_size=1, max_length=8, temperature=0.0)
    batch = policy.encode(PROMPTS[1:2])
    kinds = (batch.input_ids == policy.model.config.image_token_id).int()
    extra = {"mm_token_type_ids": kinds} if "image_grid_thw" in batch.media else {}
    theirs = policy.model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        **batch.media,
        **extra,
        do_sample=False,
        max_new_tokens=8,
        suppress_tokens=policy.suppressed.tolist(),
    )
    new = theirs[0, batch.input_ids.shape[1] :]
    assert drawn.ids[0, : len(new)].tolist() == new.tolist()


def test_a_draw_depends_on_the_seed_alone() -> None:
    policy = tiny_internvl()
    first, again, other = (draw(policy, seed=seed, group_size=3, max_length=6) for seed in (1, 1, 2))
    assert first.ids.equal(again.ids)
    assert not first.ids.equal(other.ids)


def test_control_and_picture_tokens_are_never_drawn() -> None:
    policy = tiny_internvl()
    with torch.no_grad():
        policy.head.weight[policy.suppressed] = 5.0 * policy.head.weight[policy.suppressed].sign()
    drawn = draw(policy, group_size=8, max_length=20)
    assert not torch.isin(drawn.ids[drawn.mask], policy.suppressed).any()


def test_what_is_finished_leaves_and_nothing_follows_the_end(policy: GenerativeRMPolicy) -> None:
    prompts = PROMPTS + [text_prompt(str(i), "red " * i) for i in range(5)]
    eos = policy.tokenizer.eos_token_id
    louder = torch.zeros(policy.head.weight.shape[0])
    louder[eos] = 4.0  # ends come often, at different lengths
    policy.head.register_forward_hook(lambda head, inputs, logits: logits + louder)
    fed: list[tuple[int, int]] = []
    watch = policy.model.model.register_forward_pre_hook(
        lambda model, args, options: fed.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    drawn = draw(policy, prompts, group_size=4, max_length=40)
    watch.remove()
    learned, _ = policy.logprobs(policy.encode(prompts), drawn.ids, drawn.mask)
    assert_close(drawn.logprobs, learned.detach(), atol=1e-5, rtol=0)
    lengths = drawn.mask.sum(1)
    assert lengths.unique().numel() > 2
    for row, length in zip(drawn.ids, lengths, strict=True):
        assert eos not in row[: length - 1]
        assert length == drawn.ids.shape[1] or row[length - 1] == eos
    steps = [rows * columns for rows, columns in fed[1:]]  # after the prompts
    longest = int(lengths.max())
    assert len(steps) == longest - 1
    for step, tokens in enumerate(steps, start=1):
        still = (lengths > step).view(-1, 4)
        assert tokens <= max(int(still.any(1).sum() * still.sum(1).max()) / 0.75, 1)
    assert steps[-1] < steps[0]


def test_tokens_come_as_often_as_they_are_probable() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.0499, 1e-4, 0.0], dtype=torch.float64)
    scores = probabilities.float().log().clamp(min=-1e4).expand(1, 200_000, -1)
    tokens, logprobs = _draw(2 * scores, Sampling(temperature=2.0), torch.Generator().manual_seed(0))
    counts = tokens.flatten().bincount(minlength=7)
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible], 200_000 * probabilities[possible]).pvalue > 0.01
    assert_close(logprobs[0].double().exp(), probabilities[tokens[0]], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("top_p", "top_k"), [(0.7, 0), (1.0, 5), (0.5, 20), (1.0, 999), (1e-9, 0)])
def test_truncated_sampling_draws_from_what_transformers_leaves(top_p: float, top_k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(40, 16, 30, generator=generator)
    kinds = [TopKLogitsWarper(top_k)] if top_k else []
    left = LogitsProcessorList([*kinds, TopPLogitsWarper(top_p)])
    flat = (scores / 0.8).view(-1, 30)
    expected = left(torch.zeros(len(flat), 1), flat).log_softmax(-1).view_as(scores)  # type: ignore[arg-type]
    sampling = Sampling(temperature=0.8, top_p=top_p, top_k=top_k)
    tokens, logprobs = _draw(scores, sampling, generator)
    assert_close(logprobs, expected.gather(-1, tokens[..., None])[..., 0])
    assert logprobs.isfinite().all()
    within = expected.isfinite().sum(-1).float().mean()
    assert sampling.truncated == (top_p < 1 or top_k > 0)
    assert within < 30 or top_k == 999


def test_one_token_to_choose_from_is_the_most_probable() -> None:
    policy = tiny_internvl()
    greedy = draw(policy, group_size=2, max_length=6, temperature=0.0)
    drawn = draw(policy, group_size=2, max_length=6, top_k=1)
    assert drawn.ids.equal(greedy.ids)
    assert (drawn.logprobs == 0).all()


@pytest.mark.parametrize("options", [{"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"temperature": -1.0}])
def test_sampling_that_cannot_be_is_refused(options) -> None:
    with pytest.raises(ValueError, match="cannot sample with temperature"):
        Sampling(**options)
