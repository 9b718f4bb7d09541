"""What a person finds in TensorBoard after a run from the command line, read from its event files."""

from __future__ import annotations

import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_msrl.callbacks import FlatRewardsWarning
from lit_msrl.types import TASK_TYPES
from tests.experiments.made import UNSEEN, call, command

PARTS = ("language", "projector", "vision")
REWARDS = ("accuracy", "format", "task", "total")
SAMPLED = {f"reward/{name}" for name in REWARDS} | {
    "rollout/zero_variance_groups", "rollout/length", "rollout/truncated", "rollout/verdict_a",
    "time/sample", "tokens_per_second/sample",
}  # fmt: skip
LEARNED = {f"gradient_norm/{part}" for part in PARTS} | {
    "rlvr/loss", "rlvr/kl", "rlvr/entropy", "rlvr/ratio_mean", "rlvr/gradient_norm",
    "rlvr/clip_fraction_low", "rlvr/clip_fraction_high",
    "sampler/kl", "sampler/weight", "sampler/effective_sample_size",
    "rollout/rounds", "rollout/carried", "time/learn", "tokens_per_second/learn", "memory/peak_gib",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[EventAccumulator, list[object]]:
    """Three steps of stage 2, with replay, a KL term and resampling: its events and its callbacks."""
    folder = tmp_path_factory.mktemp("watched")
    rates = ", ".join(f"{part}: 1e-4" for part in PARTS)
    options = [
        *("--trainer.max_steps=3", "--model.max_completion=48", "--model.max_rounds=2"),
        *("--model.loss.kl_coef=0.01", f"--model.learning_rates={{{rates}}}"),
    ]
    cli = call("stage2", command("stage2", folder, *options, *UNSEEN))
    events = EventAccumulator(
        str(folder / "stage2" / "version_0"),
        size_guidance={"scalars": 0, "tensors": 0},
    )
    events.Reload()
    return events, list(cli.trainer.callbacks)  # type: ignore[attr-defined]


def values(events: EventAccumulator, tag: str) -> list[float]:
    return [event.value for event in events.Scalars(tag)]


def test_every_number_is_there_for_every_step(run) -> None:
    events, _ = run
    by_task = {f"{name}/{task.replace(' ', '_')}" for name in REWARDS for task in TASK_TYPES}
    rates = {f"lr-AdamW/{part}" for part in PARTS}
    tags = set(events.Tags()["scalars"])
    counted = {"epoch", "data/dropped", "data/held_out", "data/shrunk", "steps/skipped"}
    assert tags - by_task == SAMPLED | LEARNED | rates | counted
    shown = {tag.partition("/")[2] for tag in tags & by_task}
    assert "text" in shown
    assert len(shown) > 1
    assert all(f"{name}/{task}" in tags for name in REWARDS for task in shown)
    assert all(len(values(events, tag)) >= 3 for tag in SAMPLED | LEARNED | rates)
    assert all(math.isfinite(value) for tag in tags for value in values(events, tag))


def test_the_numbers_are_what_they_say(run) -> None:
    events, _ = run
    assert all(
        value == pytest.approx(1, abs=1e-3) for value in values(events, "sampler/effective_sample_size")
    )
    assert all(value == pytest.approx(0, abs=1e-5) for value in values(events, "sampler/kl"))
    assert all(value == pytest.approx(1e-4) for value in values(events, "lr-AdamW/vision"))
    assert set(values(events, "gradient_norm/vision")) == {0}  # captions only
    assert all(0.1 < value < 100 for value in values(events, "memory/peak_gib"))
    assert all(0 < value <= 48 for value in values(events, "rollout/length"))
    assert values(events, "gradient_norm/language") == pytest.approx(values(events, "rlvr/gradient_norm"))


def test_completions_have_their_rewards_and_advantages(run) -> None:
    events, _ = run
    (table, *_) = events.Tensors("completions/text_summary")
    lines = table.tensor_proto.string_val[0].decode().splitlines()
    header = "| reward | accuracy | format | task | advantage | completion |"
    assert header in lines
    assert len(lines[lines.index(header) + 2 :]) == 2  # the completions of one prompt


def test_flat_rewards_are_watched_for(run) -> None:
    _, callbacks = run
    assert any(isinstance(callback, FlatRewardsWarning) for callback in callbacks)
