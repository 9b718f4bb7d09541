"""What one rank of two does; run as ``python -m tests.scale.two_ranks FOLDER`` with ``LOCAL_RANK`` set.

One pair of processes goes through all runs and leaves what it saw in files: ``<run>_<rank>.pt``.
"""

from __future__ import annotations

import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy

from data_modules import CaptionPreferenceDataModule
from data_modules.base import PreferenceDataModule
from data_modules.sources import Source
from data_modules.world import World
from lit_msrl.adapters import LoRA
from lit_msrl.callbacks import TrainablePartsCheck
from lit_msrl.engines import HFEngine, Sampling
from lit_msrl.losses import GRPOLoss
from lit_msrl.prompts import JudgingPrompt
from lit_msrl.rewards import RewardSum
from lit_msrl.stages import CMKD, RLVRModule
from lit_msrl.stages.base import StageModule
from lit_msrl.strategies import FSDP2, whole
from lit_msrl.types import PreferenceExample
from tests.conftest import picture_prompt, text_prompt, tiny_internvl
from tests.fakes import ScriptedEngine

CLIP = 0.05  # below the norm of the gradients: clipping happens
PROMPTS = [text_prompt("a"), text_prompt("b", "a green hat and"), picture_prompt(1), picture_prompt(2)]


class Mixed(Source):
    """Two texts, two pictures, and again: one rank of two has only texts, the other only pictures."""

    def __init__(self, size: int = 16) -> None:
        text, pictures = World(["text"]), World(["image generation"])
        self.made = [(text if i % 4 < 2 else pictures).example(i) for i in range(size)]

    def dataset(self) -> datasets.IterableDataset:
        return datasets.IterableDataset.from_generator(self._stream)  # type: ignore[return-value]

    def describe(self) -> str:
        return "texts and pictures"

    def _stream(self):
        return ({"example": example} for example in self.made)


class Uneven(RewardSum):
    """0, 1, 2 within every group of three."""

    def __call__(self, judgements, prompts):
        scores = super().__call__(judgements, prompts)
        return scores._replace(total=torch.arange(len(judgements), dtype=torch.float32).remainder(3))


def script(prompt: JudgingPrompt) -> list[tuple[str, float]]:
    """Completions of unequal lengths; of every second example nothing but the end of the turn."""
    number = int(prompt.example.id.split("/")[-2])
    texts = ["a ball", "<think>red</think>", "hat"] if number % 2 else ["", "", ""]
    return [(text, -1.0) for text in texts]


class Spy(RLVRModule):
    """Remembers examples, whole gradients and their norms, step by step."""

    name = "spy"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen: list[list[str]] = []
        self.groups: list[tuple[int, int]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.norms: list[dict[str, float]] = []

    def training_step(self, batch: list[PreferenceExample], batch_idx: int) -> None:
        self.seen.append([example.id for example in batch])
        super().training_step(batch, batch_idx)
        self.groups.append((len(self.last_rollout.prompts), len(self.last_rollout.rewards)))

    def descend(self) -> dict[str, torch.Tensor]:
        named = self.policy.named_parameters()
        self.gradients.append({name: whole(p.grad).clone() for name, p in named if p.grad is not None})
        norms = super().descend()
        self.norms.append({name: float(norm) for name, norm in norms.items()})
        return norms


class Reader(Spy):
    """Only looks at the data."""

    def training_step(self, batch: list[PreferenceExample], batch_idx: int) -> None:
        self.seen.append([f"{example.source}/{example.task_type}/{example.id}" for example in batch])


class Imitator(CMKD):
    """CMKD whose traces are given: all pictures have one, of the texts only the sixth."""

    name = "imitator"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        kept = [e.id for i, e in enumerate(Mixed().made) if i % 4 > 1 or i == 5]
        self.traces = {name: ("red ball" * (1 + i % 3), "A") for i, name in enumerate(kept)}
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.losses: list[float] = []

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        named = self.policy.named_parameters()
        self.gradients.append({name: whole(p.grad).clone() for name, p in named if p.grad is not None})

    def on_train_batch_end(self, *args: Any) -> None:
        self.losses.append(float(self.trainer.callback_metrics["sft/loss"]))


class Between(L.Callback):
    """After the first step: save, and sample, every rank as long as it likes."""

    def __init__(self, checkpoint: Path, *, sample: bool) -> None:
        self.checkpoint, self.sample = checkpoint, sample
        self.samples: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == 1:
            trainer.save_checkpoint(self.checkpoint)
            if self.sample:
                self.samples = sample(pl_module, trainer.global_rank, trainer.world_size)


def sample(stage: Spy, rank: int, ranks: int) -> list[torch.Tensor]:
    """Greedy completions: of texts up to 3 tokens, of pictures up to 9."""
    drawn = []
    for kind, length in ((0, 3), (1, 9)):
        if ranks == 1 or kind == rank:
            prompts = PROMPTS[2 * kind : 2 * kind + 2]
            batch = stage.policy.encode(prompts)
            found = HFEngine().generate(
                stage.policy, prompts, batch, sampling=Sampling(1, length, 0.0), seed=0
            )
            drawn += [found.ids, found.logprobs]
    return drawn


def stage(kind: type[Spy] = Spy, *, lora: bool = False, **options: Any) -> Spy:
    """The same module on every rank and in the one process they are compared with."""
    policy = tiny_internvl(seed=1, lora=LoRA(rank=2) if lora else None)
    if lora:
        torch.manual_seed(2)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return kind(
        policy,
        {"language": 0.1} if lora else {"language": 0.1, "projector": 0.1, "vision": 0.1},
        partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        options.pop("loss", None) or GRPOLoss(),
        Uneven(),
        engine=ScriptedEngine(script),
        group_size=3,
        micro_batch_size=options.pop("micro_batch_size", 1),
        max_completion=16,
        max_grad_norm=CLIP,
        style="compact",
        **options,
    )


def fit(
    module: StageModule, data: PreferenceDataModule, strategy: Any, ranks: int, folder: Path, **options: Any
) -> L.Trainer:
    """Train for two steps on CPUs."""
    defaults: dict[str, Any] = {"max_steps": 2, "max_epochs": -1, "limit_val_batches": 0}
    resume = options.pop("ckpt_path", None)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        **(defaults | options),
    )
    trainer.fit(module, data, ckpt_path=resume, weights_only=True if resume else None)
    return trainer


def mixed(ranks: int) -> PreferenceDataModule:
    return PreferenceDataModule(Mixed(), batch_size=4 // ranks, shuffle_buffer=0)


def weights(module: Spy) -> dict[str, torch.Tensor]:
    return {name: whole(p.detach()).clone() for name, p in module.policy.named_parameters()}


def steps(folder: Path, strategy: Any, ranks: int, *, checkpoint: str, **options: Any) -> dict[str, Any]:
    """Two steps with a checkpoint and sampling between them; everything that was seen."""
    module = stage(**options)
    between = Between(folder / checkpoint, sample=True)
    fit(module, mixed(ranks), strategy, ranks, folder, callbacks=[between, TrainablePartsCheck()])
    return {
        "seen": module.seen,
        "groups": module.groups,
        "gradients": module.gradients,
        "norms": module.norms,
        "samples": between.samples,
        "weights": weights(module),
    }


def resumed(
    folder: Path, strategy: Any, ranks: int, *, checkpoint: str, lora: bool
) -> dict[str, torch.Tensor]:
    """The second step alone, from a checkpoint."""
    module = stage(lora=lora)
    fit(module, mixed(ranks), strategy, ranks, folder, ckpt_path=folder / checkpoint)
    return weights(module)


def first_step(folder: Path, strategy: Any, ranks: int, *, checkpoint: str, lora: bool) -> None:
    """The first step, and a checkpoint of it."""
    between = Between(folder / checkpoint, sample=False)
    fit(stage(lora=lora), mixed(ranks), strategy, ranks, folder, callbacks=[between], max_steps=1)


def imitate(folder: Path, strategy: Any, ranks: int) -> dict[str, Any]:
    """Two steps of CMKD; in the first, one rank of two has nothing to imitate."""
    policy, rates = tiny_internvl(seed=1), {"language": 0.1, "projector": 0.1, "vision": 0.1}
    optimizer = partial(torch.optim.SGD, lr=0.1)
    module = Imitator(policy, rates, optimizer, max_completion=16, style="compact")  # type: ignore[arg-type]
    fit(module, mixed(ranks), strategy, ranks, folder)
    return {"gradients": module.gradients, "losses": module.losses}


def epoch(folder: Path, strategy: Any, ranks: int) -> list[list[str]]:
    """What stage 2 is shown in an epoch, text replayed."""
    data = CaptionPreferenceDataModule(
        World(size=24, seed=1),
        replay=World(["text"], size=8, seed=2),
        replay_ratio=(4, 1),
        batch_size=10 // ranks,
        shuffle_buffer=16,
    )
    module = stage(Reader, view="caption")
    fit(module, data, strategy, ranks, folder, max_steps=-1, max_epochs=1)
    return module.seen


def strategies() -> dict[str, Any]:
    """One of each kind; a strategy serves one trainer."""
    return {"ddp": lambda: DDPStrategy(process_group_backend="gloo"), "fsdp": FSDP2}


def main(folder: Path) -> None:
    """All runs of this rank."""
    rank = int(os.environ["LOCAL_RANK"])
    found: dict[str, Any] = {}
    for kind, make in strategies().items():
        for lora in (False, True):
            name = f"{kind}_{'lora' if lora else 'full'}"
            found[name] = steps(folder, make(), 2, checkpoint=f"{name}.ckpt", lora=lora)
            found[f"{name}_resumed"] = resumed(folder, make(), 2, checkpoint=f"{name}.ckpt", lora=lora)
        found[f"{kind}_epoch"] = epoch(folder, make(), 2)
        found[f"{kind}_imitation"] = imitate(folder, make(), 2)
    for lora in (False, True):
        file = f"whole_{'lora' if lora else 'full'}.ckpt"
        first_step(folder, FSDP2(sharded_checkpoints=False), 2, checkpoint=file, lora=lora)
        found[file] = resumed(folder, FSDP2(sharded_checkpoints=False), 2, checkpoint=file, lora=lora)
    terms = {"loss": GRPOLoss(kl_coef=0.1, entropy_coef=0.01), "num_iterations": 2}
    found["fsdp_terms"] = steps(folder, FSDP2(), 2, checkpoint="terms.ckpt", **terms)
    found["fsdp_offload"] = steps(folder, FSDP2(cpu_offload=True), 2, checkpoint="offload.ckpt")
    found["fsdp_bfloat16"] = steps(folder, FSDP2(compute="bfloat16"), 2, checkpoint="bfloat16.ckpt")
    torch.save(found, folder / f"rank_{rank}.pt")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
