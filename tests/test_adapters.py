"""LoRA and 4-bit weights: what is quantised, what learns, what is saved."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from bitsandbytes.optim.adamw import AdamW8bit
from torch.testing import assert_close

from lit_msrl.adapters import NF4, LoRA
from lit_msrl.backbones import Part
from lit_msrl.engines import HFEngine, Sampling
from lit_msrl.evaluation import load_weights
from lit_msrl.losses import GRPOLoss
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.stages import DiscriminativeRM
from tests.conftest import picture_prompt, text_prompt, tiny_internvl
from tests.stages.test_rlvr import Stage, Uneven, data, trainer

PROMPTS = [text_prompt("t"), picture_prompt(1)]
TARGETS = ["<think>ball</think>", "A", "the hat", "<answer>B</answer>"]


def quantised(**options) -> GenerativeRMPolicy:
    return GenerativeRMPolicy("tiny", LoRA(rank=4), NF4(**options), max_length=512)


def lora_stage(rates: dict[Part, float]) -> Stage:
    """Adapters on a random model, and SGD."""
    return Stage(
        tiny_internvl(seed=1, lora=LoRA(rank=2)),
        rates,
        partial(torch.optim.SGD, lr=0.1),
        GRPOLoss(),
        Uneven(),
        group_size=4,
        max_completion=8,
        style="compact",
    )


def four_bit(policy: GenerativeRMPolicy) -> set[str]:
    """Names of the modules in 4 bits."""
    return {name for name, module in policy.model.named_modules() if isinstance(module, Linear4bit)}


def test_the_language_model_is_quantised_and_nothing_else() -> None:
    found = four_bit(quantised())
    assert len(found) == 4 * 7  # layers x projections
    assert all(".language_model.layers." in name for name in found)


def test_vision_is_quantised_too_if_asked() -> None:
    found = four_bit(quantised(vision=True))
    for part in ("language_model", "vision_tower", "multi_modal_projector"):
        assert any(part in name for name in found)
    assert "lm_head" not in found


def test_weights_in_4_bits_need_adapters() -> None:
    with pytest.raises(ValueError, match=r"set model\.policy\.lora beside quantization"):
        GenerativeRMPolicy("tiny", quantization=NF4())


def test_weights_in_4_bits_refuse_several_devices(tmp_path) -> None:
    stage = Stage(quantised(), {"language": 1e-2}, torch.optim.AdamW, GRPOLoss(), style="compact")
    stage._trainer = trainer(tmp_path, devices=2, strategy="ddp_spawn")
    with pytest.raises(ValueError, match="4-bit weights run on one device, not on 2"):
        stage.configure_model()


def test_qlora_learns_samples_and_goes_on_from_its_adapters(tmp_path: Path) -> None:
    """Steps with recomputation and 8-bit AdamW; the checkpoint holds adapters, and fits another base."""

    def run(steps: int, start: Path | None = None, resume: Path | None = None) -> Stage:
        policy = GenerativeRMPolicy("tiny", LoRA(rank=4), NF4(), gradient_checkpointing=True, max_length=512)
        stage = Stage(
            policy, {"language": 1e-2}, partial(AdamW8bit, weight_decay=0.0), GRPOLoss(), Uneven(),
            group_size=4, micro_batch_size=2, max_completion=8, style="compact",
        )  # fmt: skip
        if start is not None:
            load_weights(policy, start)
        run = trainer(tmp_path, max_steps=steps)
        run.fit(stage, data(2), ckpt_path=resume, weights_only=True if resume else None)
        run.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return stage

    torch.manual_seed(0)
    before = {name: p.detach().clone() for name, p in quantised().named_parameters()}
    torch.manual_seed(0)
    stage = run(1)
    moved = {name for name, p in stage.policy.named_parameters() if not p.equal(before[name])}
    assert moved == {name for name in before if "lora_B" in name}  # from 0; lora_A only learns after that
    saved = torch.load(tmp_path / "1.ckpt", weights_only=True)["state_dict"]
    assert set(saved) == {f"policy.{name}" for name in before if "lora_" in name}
    for other in (run(1, start=tmp_path / "1.ckpt"), run(2, resume=tmp_path / "1.ckpt")):
        assert four_bit(other.policy) == four_bit(stage.policy)


def test_sampling_does_not_stop_gradients_through_4_bit_weights() -> None:
    """It did, on CPUs with bfloat16 instructions: bitsandbytes repacks what runs in eval mode."""
    policy = quantised().train()
    policy.train_only(["projector"])  # below all the 4-bit layers
    ids, mask = policy.encode_targets(TARGETS[:2])

    def gradient() -> torch.Tensor:
        policy.zero_grad()
        policy.logprobs(policy.encode([picture_prompt(1)]), ids, mask)[0].sum().backward()
        return policy.model.model.multi_modal_projector.linear_1.weight.grad.clone()

    before = gradient()
    sampling = Sampling(2, 4)
    HFEngine().generate(policy, PROMPTS, policy.encode(PROMPTS), sampling=sampling, seed=0)
    assert before.abs().max() > 1e-3
    assert_close(gradient(), before)


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)])
def test_running_layers_again_changes_nothing(policy, lora) -> None:
    """Log-probabilities and gradients with recomputation, of every family, prompts shared and cached."""
    from lit_msrl.recompute import recompute

    if lora is not None:
        policy.model = lora.inject(policy.model)
    ids, mask = policy.encode_targets(TARGETS)

    def gradients() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        policy.zero_grad()
        logprobs, _ = policy.logprobs(policy.encode(PROMPTS), ids, mask)
        logprobs.sum().backward()
        return logprobs.detach(), {
            n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None
        }

    runs = [0]
    policy.layers()[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    expected, wanted = gradients()
    assert sum(runs) == 2  # the prompt, and the completions after it
    recompute(policy.layers())
    found, got = gradients()
    assert sum(runs) == 2 + 4  # each of them again in the backward pass
    assert found.equal(expected)
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert_close(got[name], gradient, atol=1e-6, rtol=1e-5)


def test_a_copy_runs_its_own_layers_again() -> None:
    """A reference policy is a copy; it must not reach into the policy it was copied from."""
    import copy

    from lit_msrl.recompute import recompute

    policy = tiny_internvl()
    recompute(policy.layers())
    other = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
    ids, mask = other.encode_targets(TARGETS[:2])
    found, _ = other.logprobs(other.encode(PROMPTS), ids, mask)
    wanted, _ = tiny_internvl().logprobs(tiny_internvl().encode(PROMPTS), ids, mask)
    assert found.equal(wanted)


def test_what_an_earlier_stage_trained_stays_in_the_checkpoint(tmp_path: Path) -> None:
    """The projector, trained by one stage and frozen in the next, is not the base model's any more."""

    def stage(*parts: Part) -> Stage:
        return lora_stage(dict.fromkeys(parts, 0.1))

    def names(path: Path) -> set[str]:
        return set(torch.load(path, weights_only=True)["state_dict"])

    first = stage("language", "projector")
    run = trainer(tmp_path)
    run.fit(first, data())
    run.save_checkpoint(tmp_path / "first.ckpt")
    second = stage("language")
    load_weights(second.policy, tmp_path / "first.ckpt")
    run = trainer(tmp_path)
    run.fit(second, data())
    run.save_checkpoint(tmp_path / "second.ckpt")
    assert names(tmp_path / "second.ckpt") == names(tmp_path / "first.ckpt")
    assert any("multi_modal_projector" in name for name in names(tmp_path / "second.ckpt"))
    frozen = ("vision_tower", "embed_tokens", "base_layer")
    assert not any(part in name for part in frozen for name in names(tmp_path / "second.ckpt"))


def test_what_is_not_the_policys_is_always_saved() -> None:
    policy = tiny_internvl(lora=LoRA(rank=2))
    stage = DiscriminativeRM(policy, {"language": 0.1}, partial(torch.optim.SGD, lr=0.1))
    assert {name for name in stage.state_dict() if "lora_" not in name} == {"score_head.weight"}


def test_a_checkpoint_without_an_adapter_is_refused(tmp_path: Path) -> None:
    stage = lora_stage({"language": 0.1})
    run = trainer(tmp_path)
    run.fit(stage, data())
    run.save_checkpoint(tmp_path / "x.ckpt")
    content = torch.load(tmp_path / "x.ckpt", weights_only=True)
    lost = min(content["state_dict"])
    del content["state_dict"][lost]
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=f"{lost.removeprefix('policy.')} is missing"):
        load_weights(tiny_internvl(lora=LoRA(rank=2)), tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="lacks 1 weights that train"):
        trainer(tmp_path, max_steps=2).fit(stage, data(), ckpt_path=tmp_path / "x.ckpt", weights_only=True)
