"""The parts of ``bench_accelerator.py`` that train on random weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from experiments.profiled import profile_policy, trainer
from experiments.random_internvl import SHAPES, Size, random_policy, workload
from lit_msrl.adapters import LoRA
from lit_msrl.backbones import PARTS
from lit_msrl.footprint import NF4_DOUBLE_BYTES, ModelSize, Step, estimate
from lit_msrl.strategies import FSDP2

GIB = 2.0**30
Record = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """How a part is run.

    Attributes:
        tiny: On a CPU, with a tiny model, for the code's sake.
        peer_python: Interpreter of another trainer.
        peer_script: Its script.
        limit: Seconds after which it is given up.
    """

    tiny: bool = False
    peer_python: str | None = None
    peer_script: str | None = None
    limit: float = 1800.0

    @property
    def device(self) -> torch.device:
        """Where it runs.

        Raises:
            ValueError: There is no GPU.
        """
        if self.tiny:
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise ValueError("there is no GPU here; --tiny=true runs the same code on a CPU")
        return torch.device("cuda")

    def size(self, size: Size) -> Size:
        """The shape of the model."""
        return "tiny" if self.tiny else size


@dataclass(frozen=True)
class Load:
    """What a step of a part is made of.

    Attributes:
        tiles: Tiles of each medium of a prompt.
        words: Words of its text.
        prompts: Prompts of a step.
        group: Completions of a prompt.
        completion: Their tokens.
        steps: Steps that are timed.
    """

    tiles: tuple[int, ...]
    words: int
    prompts: int = 2
    group: int = 8
    completion: int = 256
    steps: int = 3

    def tiny(self) -> Load:
        """The same in small."""
        few = tuple(1 for _ in self.tiles)
        return replace(self, tiles=few, words=4, prompts=1, group=2, completion=4, steps=1)


JUDGING = Load(tiles=(6, 6), words=400, completion=400)  # two media of six tiles: issue-sized prompts
SHORT = Load(tiles=(2,), words=512)


def train(
    bench: Bench, size: Size, load: Load, step: Step, *, make: Record, fit: Record, run: Record
) -> Record:
    """Train on random weights; what it cost, and what was planned.

    Args:
        bench: How.
        size: Of the model.
        load: What a step is made of.
        step: What the plan is told, beside the load.
        make: Options of ``random_policy``.
        fit: Options of ``trainer``.
        run: Options of ``profile_policy``.
    """
    load, shape = load.tiny() if bench.tiny else load, bench.size(size)
    policy, counted = random_policy(shape, bench.device, **make)
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()  # what quantising took
        torch.cuda.reset_peak_memory_stats()
    examples = workload(shape, load.prompts * (load.steps + 1), tiles=load.tiles, words=load.words)
    sizes = {"prompts": load.prompts, "group": load.group, "completion": load.completion}
    found = profile_policy(
        policy, examples, trainer=partial(trainer, bench.device.type, **fit), **sizes, **run
    )
    planned = replace(
        step,
        prompts=load.prompts,
        group=load.group,
        completion_tokens=load.completion,
        prompt_tokens=found["prompt_tokens"],
        picture_tokens=sum(load.tiles) * SHAPES[shape].tile_tokens,
        is_accelerator=bench.device.type == "cuda",
    )
    return {"model": shape} | found | memory(bench.device, counted, planned)


def memory(device: torch.device, counted: ModelSize, step: Step) -> Record:
    """What was planned; on a GPU also what the allocator took from it, and whether that fits a 24 GB card."""
    planned = {"planned_gb": round(estimate(counted, step).peak / GIB, 2)}
    if device.type != "cuda":
        return planned
    reserved = torch.cuda.max_memory_reserved() / GIB
    return planned | {"peak_reserved_gb": round(reserved, 2), "within_24_gb": reserved < 23}


def planned_step(**changes: Any) -> Step:
    """A step with one prompt per micro-batch; the load fills in the rest."""
    blank = Step(
        prompts=1, micro_batch=1, group=1, prompt_tokens=1, picture_tokens=0, completion_tokens=1,
        weight_bytes=2.0, compute_bytes=2.0,
    )  # fmt: skip
    return replace(blank, **changes)


def qlora(bench: Bench) -> Record:
    """4-bit weights of the decoder, adapters in 32 bits, paged 8-bit AdamW, as ``trainer/qlora.yaml``."""
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit

    step = planned_step(layer_bytes=NF4_DOUBLE_BYTES, optimizer_bytes=2.0, is_recomputed=True)
    optimizer = AdamW8bit if bench.tiny else PagedAdamW8bit
    return train(
        bench, "8b", SHORT, step,
        make={"lora": LoRA(), "four_bits": True, "recomputed": True},
        fit={"precision": "bf16-mixed"},
        run={"optimizer": optimizer, "parts": ("language",)},
    )  # fmt: skip


def fsdp(bench: Bench) -> Record:
    """FSDP2 on one rank: nothing is shared, but all of it is gathered, cast and summed."""
    step = planned_step(weight_bytes=4.0, trained=frozenset(PARTS), is_recomputed=True, is_sharded=True)
    try:
        return train(
            bench, "1b", SHORT, step,
            make={"dtype": torch.float32, "recomputed": True},
            fit={"strategy": FSDP2(compute="bfloat16")},
            run={"optimizer": torch.optim.AdamW},
        )  # fmt: skip
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def profile_1b(bench: Bench) -> Record:
    """A step of all parts, weights and AdamW in bfloat16."""
    step = planned_step(trained=frozenset(PARTS), optimizer_bytes=4.0)
    return train(bench, "1b", JUDGING, step, make={}, fit={"precision": "bf16-true"}, run={})


def profile_8b(bench: Bench) -> Record:
    """The same of an 8B, with 8-bit AdamW and recomputation, without which 80 GB do not hold it."""
    from bitsandbytes.optim.adamw import AdamW8bit

    step = planned_step(trained=frozenset(PARTS), optimizer_bytes=2.0, is_recomputed=True)
    return train(
        bench, "8b", JUDGING, step,
        make={"recomputed": True}, fit={"precision": "bf16-true"}, run={"optimizer": AdamW8bit},
    )  # fmt: skip
