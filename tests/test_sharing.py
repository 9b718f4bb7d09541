"""The ways in which completions share their prompt: the same numbers as plain rows, in value and gradient."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_msrl import sharing
from lit_msrl.batch import Prefix
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.sharing import Packing
from tests.conftest import tiny_internvl
from tests.test_policy import PROMPTS, TARGETS


def states(policy: GenerativeRMPolicy, way: str | int, ids: Tensor, counted: Tensor) -> Tensor:
    """By plain rows, by FlexAttention, or with so many completions to a row."""
    batch = policy.encode(PROMPTS)
    if way == "plain":
        return sharing.plain_states(policy, batch, ids, counted)
    size = 2 if way == "flex" else int(way)
    packing = Packing.of(ids, counted, size)
    prefix = sharing.repeated(policy.read(batch), len(packing.ids) // len(batch))
    mask = (sharing.block_mask if way == "flex" else sharing.dense_mask)(prefix, packing)
    return sharing.packed_states(policy, prefix, packing, mask)


def completions(policy: GenerativeRMPolicy) -> tuple[Tensor, Tensor]:
    """Of unequal length; one is blank, as a group that only keeps the ranks in step is."""
    ids, counted = policy.encode_targets(TARGETS)
    counted[3] = False
    return ids, counted


def doubled(policy: GenerativeRMPolicy) -> GenerativeRMPolicy:
    """In double precision throughout: the RMS norms of transformers round to single precision."""
    for module in policy.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(double_norm, module)  # type: ignore[method-assign]
    return policy.double()


def double_norm(module: Any, hidden: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(hidden, hidden.shape[-1:], module.weight, module.variance_epsilon)


@pytest.mark.parametrize("way", [1, 2])
def test_in_double_precision_sharing_is_exact(policy: GenerativeRMPolicy, way: int) -> None:
    doubled(policy)
    ids, counted = completions(policy)
    direction = torch.randn(int(counted.sum()), policy.head.weight.shape[1], dtype=torch.float64)

    def gradients(way: str | int) -> tuple[Tensor, dict[str, Tensor]]:
        policy.zero_grad()
        found = states(policy, way, ids, counted)
        (found * direction).sum().backward()
        return found, {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}

    (expected, plain), (found, shared) = gradients("plain"), gradients(way)
    assert_close(found, expected, atol=1e-9, rtol=0)
    assert plain.keys() == shared.keys()
    for name, gradient in plain.items():
        qwen_tower = "visual" in name  # rotates in single precision, in the backward too
        tolerance = 1e-6 if qwen_tower else 1e-9
        assert_close(shared[name], gradient, atol=tolerance, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@torch.no_grad()  # FlexAttention has no backward on a CPU
def test_flex_attention_sees_what_the_dense_mask_shows(policy: GenerativeRMPolicy) -> None:
    doubled(policy)
    ids, counted = completions(policy)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        found = states(policy, "flex", ids, counted)
    assert_close(found, states(policy, "plain", ids, counted), atol=1e-9, rtol=0)


def test_a_packed_row_by_hand() -> None:
    ids = torch.tensor([[1, 2, 3], [4, 9, 9], [5, 6, 9], [9, 9, 9]])
    counted = torch.tensor([[True, True, True], [True, False, False], [True, True, False], [False] * 3])
    packing = Packing.of(ids, counted, size=2)
    assert packing.ids.tolist() == [[1, 2], [5, packing.ids[1, 1]]]  # not the last of each, 3, 4 and 6
    assert packing.owner.tolist() == [[0, 0], [0, sharing.NOBODY]]
    assert packing.steps[0].tolist() == [0, 1]
    assert packing.rows.tolist() == [0, 0, 0, 0, 1, 1]
    assert packing.columns.tolist() == [0, 1, 2, 0, 0, 1]  # 0 is the end of the prompt
    prefix = Prefix(None, torch.zeros(2, 1), torch.zeros(2, 3), torch.tensor([[0, 1, 1], [1, 1, 1]]))  # type: ignore[arg-type]
    seen = sharing.dense_mask(prefix, packing)[:, 0] == 0
    assert seen[0].int().tolist() == [[0, 1, 1, 1, 0], [0, 1, 1, 1, 1]]
    assert seen[1, 0].int().tolist() == [1, 1, 1, 1, 0]


def test_completions_do_not_see_each_other() -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    packing = Packing.of(ids, torch.ones(2, 3, dtype=torch.bool), size=2)
    prefix = Prefix(None, torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1))  # type: ignore[arg-type]
    seen = sharing.dense_mask(prefix, packing)[0, 0] == 0
    assert seen.int().tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 1, 1]]


def test_a_long_prompt_is_shared_by_more_completions_than_a_short_one() -> None:
    def cheapest(prompt: int, length: int) -> int:
        ids = torch.ones(8, length)
        cost = {n: Packing.of(ids, ids > 0, n).cost(prompt=prompt, width=320) for n in (1, 2, 4, 8)}
        return min(cost, key=cost.__getitem__)

    assert cheapest(prompt=4096, length=32) == 8
    assert cheapest(prompt=1024, length=512) == 1


def test_a_completion_of_one_token(policy: GenerativeRMPolicy) -> None:
    ids, counted = policy.encode_targets(["", "", ""])
    assert ids.shape == (3, 1)
    shared, _ = policy.logprobs(policy.encode(PROMPTS), ids, counted)
    policy.sharing = "off"
    assert_close(shared, policy.logprobs(policy.encode(PROMPTS), ids, counted)[0], atol=1e-5, rtol=0)


def test_the_check_passes_what_agrees() -> None:
    policy = tiny_internvl()
    ids, counted = completions(policy)
    sharing.check_sharing(policy, policy.encode(PROMPTS), ids, counted)
    assert policy.sharing == "auto"


def test_the_check_allows_for_arithmetic_in_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_internvl()
    ids, counted = completions(policy)
    right = sharing.completion_states

    def rounded(policy: GenerativeRMPolicy, *args) -> Tensor:
        return right(policy, *args) * (1.0 if policy.sharing == "off" else 1.01)

    monkeypatch.setattr("lit_msrl.policy.completion_states", rounded)
    with torch.autocast("cpu", torch.bfloat16):
        assert policy.arithmetic == torch.bfloat16
        sharing.check_sharing(policy, policy.encode(PROMPTS), ids, counted)
    assert policy.sharing == "auto"
    assert policy.arithmetic == torch.float32
    with pytest.warns(UserWarning, match="differ from plain rows by 0.0"):
        sharing.check_sharing(policy, policy.encode(PROMPTS), ids, counted)


def test_the_check_falls_back_to_plain_rows_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_internvl()
    ids, counted = completions(policy)
    expected = policy.logprobs(policy.encode(PROMPTS), ids, counted)[0]
    right = sharing.next_positions
    monkeypatch.setattr(sharing, "next_positions", lambda positions, steps: right(positions, steps) + 40)
    with pytest.warns(UserWarning, match="differ from plain rows") as caught:
        sharing.check_sharing(policy, policy.encode(PROMPTS), ids, counted)
    assert [str(w.message).split(";")[1] for w in caught] == [
        " going on with dense",
        " going on with plain rows, which is slower",
    ]
    assert policy.sharing == "off"
    assert_close(policy.logprobs(policy.encode(PROMPTS), ids, counted)[0], expected, atol=1e-5, rtol=0)


def test_what_cannot_be_compiled_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_internvl()
    ids, counted = completions(policy)
    right = sharing.completion_states

    def no_compiler(policy: GenerativeRMPolicy, *args) -> Tensor:
        if policy.sharing == "auto":
            raise RuntimeError("no triton here\nand more")
        return right(policy, *args)

    monkeypatch.setattr("lit_msrl.policy.completion_states", no_compiler)
    with pytest.warns(UserWarning, match=r"\(no triton here\); going on with dense"):
        sharing.check_sharing(policy, policy.encode(PROMPTS), ids, counted)
    assert policy.sharing == "dense"
