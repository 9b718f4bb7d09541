"""Steps with a loss or gradient that is not finite: skipped, counted, kept, and in the end too many."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.numpy import load_file

from data_modules import World
from data_modules.base import PreferenceDataModule
from lit_msrl.callbacks import NonFiniteSteps
from lit_msrl.losses import GRPOLoss
from lit_msrl.stages import Stage1SFT
from tests.conftest import tiny_internvl
from tests.stages.test_rlvr import Uneven, module, trainer

pytestmark = pytest.mark.filterwarnings("ignore:step . is skipped:UserWarning")


class Poison(L.Callback):
    """Makes the gradient (or the loss) of some steps NaN."""

    def __init__(self, *steps: int, loss: bool = False) -> None:
        self.steps, self.loss, self.moved = steps, loss, []
        self.seen: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer, pl_module: Any, batch, batch_idx) -> None:
        self.before = [p.detach().clone() for p in pl_module.policy.parameters()]

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
        if self.loss and trainer.global_step in self.steps:
            loss.data.fill_(torch.inf)

    def on_after_backward(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not self.loss and trainer.global_step in self.steps:
            next(p for p in pl_module.policy.parameters() if p.grad is not None).grad[0] = torch.nan

    def on_train_batch_end(self, trainer, pl_module: Any, outputs, batch, batch_idx) -> None:
        after = list(pl_module.policy.parameters())
        self.moved.append(any(not p.equal(q) for p, q in zip(self.before, after, strict=True)))


def data(batch_size: int = 4) -> PreferenceDataModule:
    return PreferenceDataModule(World(["text", "image generation"], size=64), batch_size=batch_size)


def fit(folder: Path, stage: L.LightningModule, poison: Poison, steps: int, **options: int) -> NonFiniteSteps:
    guard = NonFiniteSteps(**options)
    trainer(folder, max_steps=steps, callbacks=[poison, guard]).fit(stage, data())
    return guard


def imitating(lr: float = 0.1) -> Stage1SFT:
    policy = tiny_internvl(seed=1)
    rates: dict[Any, float] = {"language": lr, "projector": lr, "vision": lr}
    return Stage1SFT(policy, rates, lambda groups: torch.optim.AdamW(groups), style="compact")


@pytest.mark.parametrize("loss", [False, True])
@pytest.mark.parametrize("stage", ["rlvr", "sft"])
def test_a_bad_step_moves_nothing_and_the_next_does(stage: str, loss: bool, tmp_path: Path) -> None:
    made = imitating() if stage == "sft" else module(tiny_internvl(seed=1), reward=Uneven())
    poison = Poison(1, loss=loss)
    guard = fit(tmp_path, made, poison, 3)
    assert poison.moved == [True, False, True]
    assert (guard.skipped, guard.in_a_row) == (1, 0)
    assert all(p.isfinite().all() for p in made.policy.parameters())


def test_its_optimizer_does_not_count_it(tmp_path: Path) -> None:
    stage = imitating()
    fit(tmp_path, stage, Poison(0, 2), 4)
    counts = {int(state["step"]) for state in stage.optimizers().state.values()}  # type: ignore[union-attr]
    assert counts == {2}


def test_its_batch_can_be_read_again(tmp_path: Path) -> None:
    fit(tmp_path, imitating(), Poison(1), 2)
    (path,) = (tmp_path / "non_finite").glob("*.json")
    assert path.name == "step_1_rank_0.json"
    kept = json.loads(path.read_text())
    assert kept["step"] == 1
    assert len(kept["losses"]) == 1
    assert math.isfinite(float(kept["losses"][0]))
    frames = load_file(path.with_suffix(".safetensors"))
    drawn = [World(["text", "image generation"], size=64).example(i) for i in range(64)]
    examples = {example.id: example for example in drawn}
    for i, row in enumerate(kept["examples"]):
        example = examples[row["id"]]
        assert (row["prompt"], row["winner"]) == (example.prompt, example.winner)
        assert sum(name.startswith(f"{i}_") for name in frames) == len(example.media)


def test_too_many_in_a_row_end_the_run_and_say_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 steps in a row .* their batches are in .*/non_finite"):
        fit(tmp_path, imitating(), Poison(1, 3, 4), 9, patience=2)
    names = sorted(path.name for path in (tmp_path / "non_finite").glob("*.json"))
    assert names == [f"step_{step}_rank_0.json" for step in (1, 3, 4)]


def test_only_the_newest_batches_are_kept(tmp_path: Path) -> None:
    fit(tmp_path, imitating(), Poison(0, 1, 2), 3, keep=2)
    names = sorted(path.name for path in (tmp_path / "non_finite").glob("*.json"))
    assert names == [f"step_{step}_rank_0.json" for step in (1, 2)]


def test_counts_go_on_after_a_resume() -> None:
    guard = NonFiniteSteps()
    guard.skipped, guard.in_a_row = 7, 3
    other = NonFiniteSteps()
    other.load_state_dict(guard.state_dict())
    assert (other.skipped, other.in_a_row) == (7, 3)


def test_a_kl_that_is_not_finite_does_not_adapt_the_coefficient() -> None:
    loss = GRPOLoss(kl_coef=0.1, kl_target=0.01)
    loss.adapt({"rlvr/kl": torch.tensor(torch.nan)})
    assert loss.kl_coef == 0.1
