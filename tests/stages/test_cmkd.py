"""CMKD: judgements made from captions, taught from pixels."""

from __future__ import annotations

import contextlib
import io
import re
from functools import partial

import lightning as L
import pytest
import torch

from data_modules import MultimodalPreferenceDataModule, World
from lit_msrl.backbones import Part
from lit_msrl.prompts import JudgingPrompt
from lit_msrl.stages import CMKD
from tests.conftest import tiny_internvl
from tests.fakes import ScriptedEngine

WORLD = World(["image generation", "image understanding"], size=8)
EXAMPLES = {example.id: example for example in map(WORLD.example, range(8))}
UNDECIDED, MALFORMED = WORLD.example(2).id, WORLD.example(3).id


def judgement(prompt: JudgingPrompt, think: str, answer: str) -> str:
    return f"<type>{prompt.task_type}</type><think>{think}</think><answer>{answer}</answer>"


def seen(prompt: JudgingPrompt) -> str:
    """What stands for A in a prompt of captions, as the request shows it."""
    found = re.search(r"^A: (.*)$", prompt.text, re.MULTILINE)
    assert found, prompt.text
    return found[1]


def script(prompt: JudgingPrompt) -> list[tuple[str, float]]:
    """Three samples; the second is to be chosen: of the majority, well-formed, confident."""
    assert prompt.tags == ("type", "think", "answer"), "CMKD judges from captions"
    assert not prompt.media
    chosen = judgement(prompt, f"A is {seen(prompt)}", "B")
    if prompt.example.id == UNDECIDED:
        return [(judgement(prompt, "x", "A"), -0.1), (chosen, -0.5), ("nothing", -0.1)]
    if prompt.example.id == MALFORMED:
        return [("so " + judgement(prompt, "x", "B"), -0.1)] * 3
    return [(judgement(prompt, "x", "A"), -0.1), (chosen, -0.5), (judgement(prompt, "y", "B"), -0.9)]


def module(engine: ScriptedEngine | None = None) -> CMKD:
    optimizer = partial(torch.optim.SGD, lr=0.1)
    rates: dict[Part, float] = {"language": 0.1, "projector": 0.1, "vision": 0.1}
    engine = engine or ScriptedEngine(script)
    return CMKD(tiny_internvl(), rates, optimizer, samples=3, style="compact", engine=engine)


def fit(tmp_path, stage: CMKD, max_steps: int, resume=None) -> L.Trainer:
    trainer = L.Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=tmp_path,
    )
    data = MultimodalPreferenceDataModule(WORLD, batch_size=8, shuffle_buffer=0)
    trainer.fit(stage, data, ckpt_path=resume, weights_only=True if resume else None)
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One step on all eight examples, the prompts that were trained on, and what was printed."""
    stage, asked, printed = module(), [], io.StringIO()
    targets = stage.targets
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(stage, "targets", lambda prompts: asked.extend(prompts) or targets(prompts))
        trainer = fit(tmp_path_factory.mktemp("cmkd"), stage, 1)
    return stage, trainer, asked, printed.getvalue()


def test_traces_are_what_vote_format_and_confidence_choose(run) -> None:
    stage, *_ = run
    assert set(stage.traces) == set(EXAMPLES)
    assert {name for name, trace in stage.traces.items() if trace is None} == {UNDECIDED, MALFORMED}
    for name, trace in stage.traces.items():
        if trace is not None:
            assert trace[0].startswith("A is "), name
            assert trace[1] == "B"


def test_targets_have_the_caption_and_the_reasons_in_the_order_shown(run) -> None:
    stage, *_ = run
    kept = [example for example in EXAMPLES.values() if stage.traces[example.id]]
    prompts = stage.show(kept)
    assert {prompt.swapped for prompt in prompts if prompt.example.is_generation} == {False, True}
    for prompt, target in zip(prompts, stage.targets(prompts), strict=True):
        captions = prompt.example.captions
        if prompt.example.is_generation:
            a, b = captions[::-1] if prompt.swapped else captions
            caption, reasons = f"A: {a} B: {b}", f"A is {a}"
        else:
            candidates = prompt.example.candidates
            assert candidates is not None
            caption, reasons = captions[0], f"A is {candidates[1 if prompt.swapped else 0]}"
        assert target == (
            f"<type>{prompt.task_type}</type><caption>{caption}</caption>"
            f"<think>{reasons}</think><answer>B</answer>"
        )


def test_dropped_examples_are_counted_and_skipped(run) -> None:
    _, trainer, asked, printed = run
    assert sorted(prompt.example.id for prompt in asked) == sorted(set(EXAMPLES) - {UNDECIDED, MALFORMED})
    assert all(prompt.media for prompt in asked)
    assert trainer.callback_metrics["cmkd/kept"].item() == 6 / 8
    assert "CMKD: 6 of 8 examples distilled, 2 dropped" in printed


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_batch_without_traces_is_no_step(tmp_path) -> None:
    stage = module()
    before = {name: p.detach().clone() for name, p in stage.policy.named_parameters()}
    stage.traces = dict.fromkeys(EXAMPLES)
    fit(tmp_path, stage, 1)
    assert all(p.equal(before[name]) for name, p in stage.policy.named_parameters())


def test_traces_survive_a_checkpoint(run, tmp_path) -> None:
    stage, trainer, *_ = run
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    engine = ScriptedEngine(script)
    resumed = module(engine)
    fit(tmp_path, resumed, 2, tmp_path / "one.ckpt")
    assert resumed.traces == stage.traces
    assert not engine.calls
