"""Supervised fine-tuning: what is imitated, and the loss."""

from __future__ import annotations

from functools import partial

import lightning as L
import pytest
import torch

from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import render
from lit_msrl.stages import SFTModule
from lit_msrl.types import PreferenceExample, Rationale
from tests.conftest import picture, tiny_internvl


def example(name: str = "e", **changes) -> PreferenceExample:
    fields = {
        "candidates": ("four", "five"),
        "rationale": Rationale(("is right.", "is wrong."), "two and two make four.", preferred=1),
    }
    return PreferenceExample(name, "text", "2+2?", 1, **(fields | changes))


def module(policy: GenerativeRMPolicy) -> SFTModule:
    return SFTModule(policy, {"language": 0.1}, partial(torch.optim.SGD, lr=0.1), style="compact")


def test_targets_follow_the_order_shown() -> None:
    prompts = [render(example(), style="compact", swapped=swapped) for swapped in (False, True)]
    assert module(tiny_internvl()).targets(prompts) == [
        "<think>Feedback: A is right. B is wrong. Comparison: two and two make four. Conclusion: A is better."
        "</think><answer>A</answer>",
        "<think>Feedback: A is wrong. B is right. Comparison: two and two make four. Conclusion: B is better."
        "</think><answer>B</answer>",
    ]


def test_a_comparison_names_candidates_by_the_letters_shown() -> None:
    why = example(
        rationale=Rationale(("is right.", "is wrong."), "four {1} says, five {2} says.", preferred=1)
    )
    prompts = [render(why, style="compact", swapped=swapped) for swapped in (False, True)]
    first, second = module(tiny_internvl()).targets(prompts)
    assert "Comparison: four A says, five B says. Conclusion: A" in first
    assert "Comparison: four B says, five A says. Conclusion: B" in second


def test_the_annotator_is_imitated_errors_included() -> None:
    fooled = example(rationale=Rationale(("is right.", "is wrong."), "five is more.", preferred=2))
    (target,) = module(tiny_internvl()).targets([render(fooled, style="compact", swapped=False)])
    assert target.endswith("Comparison: five is more. Conclusion: B is better.</think><answer>B</answer>")


@pytest.mark.parametrize("with_picture", [False, True])
def test_the_loss_is_the_mean_over_all_tokens(with_picture: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the mean of the examples' means: the targets differ in length."""
    policy = tiny_internvl()
    stage = module(policy)
    stage._trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    logged = {}
    monkeypatch.setattr(stage, "log", lambda name, value, **_: logged.setdefault(name, value))
    long = Rationale(("is right, as all who can count agree.", "is wrong."), "four it is.", preferred=1)
    batch = [example("short"), example("long", rationale=long)]
    if with_picture:
        batch[1] = PreferenceExample(
            "p",
            "image understanding",
            "What?",
            2,
            candidates=("a hat", "a ball"),
            media=(picture(0),),
            captions=("a ball",),
            rationale=Rationale(("says hat.", "says ball."), "it is a ball.", preferred=2),
        )
    nll, tokens = 0.0, 0
    for prompt in stage.show(batch):
        encoded = policy.encode([prompt])
        (target,) = stage.targets([prompt])
        ids = policy.tokenizer(target, add_special_tokens=False, return_tensors="pt")["input_ids"]
        ids = torch.cat([ids, torch.tensor([[policy.tokenizer.eos_token_id]])], dim=1)
        logits = policy.model(input_ids=torch.cat([encoded.input_ids, ids], dim=1), **encoded.media).logits
        logits[..., policy.suppressed] = -1e4
        logprobs = logits[0, -ids.shape[1] - 1 : -1].log_softmax(-1)
        nll -= logprobs.gather(-1, ids[0][:, None]).sum().item()
        tokens += ids.shape[1]
    loss = stage.training_step(batch, 0)
    assert loss.item() == pytest.approx(nll / tokens, rel=1e-5)
    assert loss.requires_grad
    assert logged["sft/loss"].item() == loss.item()
