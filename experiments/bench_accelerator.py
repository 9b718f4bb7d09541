"""What a machine with a GPU shows: QLoRA of an 8B within 24 GB, FSDP2, the demo, speed. One JSON line a part.

python experiments/bench_accelerator.py [--append=docs/accelerator.jsonl]

The models have the shapes of InternVL3.5 and random weights, drawn on the GPU. Each part runs in a process of
its own; one that fails says why in its line (``left_out``). Every training part gives the peak that was
measured beside the one that ``lit_msrl.footprint`` plans. ``--tiny=true`` is the same code on a CPU.
``peer`` runs another trainer on the 1B model and its workload, saved as a folder: with one picture of a tile
and text, the peer's script is called as ``bench_scaling.py`` calls it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import auto_cli

from experiments.accelerator_parts import Bench, Load, Record, fsdp, profile_1b, profile_8b, qlora
from experiments.bench_scaling import machine, measure
from experiments.pipeline import pipeline
from experiments.profile_step import profile_step
from experiments.random_internvl import random_policy, workload
from lit_msrl.cli import run

Part = Literal["qlora", "fsdp", "demo", "profile_1b", "profile_8b", "peer"]


def demo(bench: Bench) -> Record:
    """Both arms of the demo, trained on the GPU: accuracy on 400 test examples."""
    accelerator = "cpu" if bench.device.type == "cpu" else "gpu"
    options = [f"--trainer.accelerator={accelerator}"]
    options += ["--trainer.max_steps=1"] if bench.tiny else []
    tested, followed = (4, 2) if bench.tiny else (400, 96)
    with tempfile.TemporaryDirectory() as folder:
        pipeline(folder, options=options, test_size=tested, ladder_size=followed)
        files = sorted((Path(folder) / "evaluations").glob("*.jsonl"))
        judged = {f.stem: [json.loads(line) for line in f.read_text().splitlines()] for f in files}
    return {
        f"accuracy_{arm}": round(sum(r["preferred"] == r["winner"] for r in records) / len(records), 4)
        for arm, records in judged.items()
    }


def peer(bench: Bench) -> Record:
    """Ours and another trainer, one after the other, on the same model, prompts and lengths.

    Raises:
        ValueError: Which other trainer is not said.
    """
    if bench.peer_python is None or bench.peer_script is None:
        raise ValueError("the part 'peer' needs --peer_python and --peer_script")
    load = Load(tiles=(1,), words=2800, completion=400)
    load = load.tiny() if bench.tiny else load
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(bench, folder, load)
        sizes = {
            "prompts": load.prompts,
            "group": load.group,
            "completion": load.completion,
            "steps": load.steps,
        }
        options = [f"--{option}={value}" for option, value in sizes.items()]
        command = [bench.peer_python, bench.peer_script, "run", str(folder), *options]
        theirs = measure("trl", command, bench.limit)
        ours = profile_step(
            str(folder),
            str(folder / "workload.jsonl"),
            **sizes,
            device="cpu" if bench.tiny else "cuda",
            threads=torch.get_num_threads(),
        )
    return {"model": bench.size("1b"), "lit_msrl": ours, "peer": theirs}


def save(bench: Bench, folder: Path, load: Load) -> None:
    """Model, tokenizer, image processor and ``workload.jsonl``: what both sides read."""
    policy, _ = random_policy(bench.size("1b"), bench.device)
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    policy.backbone.image_processor.save_pretrained(folder)
    examples = workload(bench.size("1b"), load.prompts * (load.steps + 1), tiles=load.tiles, words=load.words)
    with (folder / "workload.jsonl").open("w") as file:
        for example in examples:
            example.media[0].frames[0].save(folder / f"{example.id}.png")
            row = {"image": f"{example.id}.png", "prompt": example.prompt, "label": "AB"[example.winner == 2]}
            print(json.dumps(row), file=file)


RUNS: dict[Part, Callable[[Bench], Record]] = {
    "qlora": qlora,
    "fsdp": fsdp,
    "demo": demo,
    "profile_1b": profile_1b,
    "profile_8b": profile_8b,
    "peer": peer,
}


def bench_accelerator(
    part: Part | None = None,
    *,
    tiny: bool = False,
    append: str | None = None,
    peer_python: str | None = None,
    peer_script: str | None = None,
    limit: float = 1800.0,
) -> None:
    """Run one part here, or all of them, each in a process of its own; a JSON line for each.

    Args:
        part: Which; by default all, ``peer`` only with a peer.
        tiny: Run a miniature on a CPU.
        append: A file of JSON lines that is added to.
        peer_python: Interpreter of another trainer.
        peer_script: Its script.
        limit: Seconds after which a part is given up.
    """
    bench = Bench(tiny, peer_python, peer_script, limit)
    where = machine() | {"device": "cpu" if tiny else torch.cuda.get_device_name(bench.device)}
    names: list[Part] = [part] if part else [name for name in RUNS if name != "peer" or peer_script]
    for name in names:
        found = RUNS[name](bench) if part else apart(name, bench)
        line = json.dumps({"part": name} | where | found)
        print(line, flush=True)
        if append is not None:
            with Path(append).open("a") as file:
                print(line, file=file)


def apart(name: Part, bench: Bench) -> Record:
    """A part in a process of its own."""
    options = {k: v for k, v in vars(bench).items() if v is not None}
    words = [
        f"--{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in options.items()
    ]
    command = [sys.executable, __file__, f"--part={name}", *words]
    return measure("lit_msrl", command, bench.limit)


if __name__ == "__main__":
    run(lambda: auto_cli(bench_accelerator, as_positional=False))
