"""Does a configuration fit? Memory per device, from the configuration alone: no weights are read.

python -m lit_msrl.plan --config experiments/configs/stage3.yaml --config my/model.yaml \
    --config experiments/configs/trainer/fsdp.yaml --devices 8 --memory_gib 80

The files are those a stage takes, the stage's own first; later ones win. A run's ``config.yaml`` will do too.
Of a model on the hub only its configuration is fetched.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from rich.console import Console
from rich.table import Table

from lit_msrl.cli import run
from lit_msrl.footprint import Memory, ModelSize, Step, estimate
from lit_msrl.sizes import Lengths, read

GIB = 2.0**30


def merged(files: Sequence[str | Path]) -> dict[str, Any]:
    """Configuration files as one; later ones win.

    Raises:
        ValueError: A file is missing or holds no settings.
    """
    config: dict[str, Any] = {}
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"{file}: no such configuration")
        content = yaml.safe_load(Path(file).read_text())
        if not isinstance(content, dict):
            raise ValueError(f"{file} holds no settings")
        config = _over(config, content)
    return config


def _over(base: Any, top: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(top, dict):
        return top
    return base | {key: _over(base.get(key), value) for key, value in top.items()}


def show(console: Console, size: ModelSize, step: Step, memory: Memory, available: float) -> None:
    """Print the plan.

    Args:
        console: Where.
        size: The model.
        step: What is done.
        memory: What that takes.
        available: Memory of one device, 0 if it is not known.
    """
    table = Table("when", "what", "GiB", title=f"Memory of one of {step.devices} device(s)")
    for phase, items in ({"always": memory.always} | memory.phases).items():
        for name, held in items.items():
            if held:
                table.add_row(phase, name, f"{held / GIB:.2f}")
                phase = ""
    console.print(table)
    console.print(
        f"{size.parameters / 1e9:.2f} B weights; per device and step {step.prompts} prompts of "
        f"{step.prompt_tokens} tokens ({step.picture_tokens} of pictures), {step.group} completions of "
        f"{step.completion_tokens}, {step.micro_batch} prompts per micro-batch."
    )
    peak = f"Peak {memory.peak / GIB:.1f} GiB"
    if available:
        verdict = "fits" if memory.fits(available) else "does not fit"
        peak += (
            f" of {available / GIB:.1f} GiB: {verdict} (a tenth is left for what is not counted: the "
            "allocator, CUDA, libraries)"
        )
    console.print(f"{peak}.")


def main(args: Sequence[str] | None = None) -> Memory:
    """Read a configuration and print its plan."""
    parser = argparse.ArgumentParser(
        prog="python -m lit_msrl.plan", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", action="append", required=True, help="a file; may be repeated")
    parser.add_argument("--devices", type=int, help="all GPUs of all nodes (default: as the trainer says)")
    parser.add_argument("--memory_gib", type=float, help="of one device (default: of the one here)")
    parser.add_argument("--prompt_tokens", type=int, help="of the longest prompt (default: max_length)")
    parser.add_argument("--picture_tokens", type=int, help="how many of them are pictures' (default: half)")
    options = parser.parse_args(args)
    lengths = Lengths(options.prompt_tokens, options.picture_tokens, options.devices)
    size, step = read(merged(options.config), lengths)
    memory = estimate(size, step)
    here = (
        torch.cuda.get_device_properties(0).total_memory
        if torch.cuda.is_available()
        else psutil.virtual_memory().total
    )
    show(Console(), size, step, memory, options.memory_gib * GIB if options.memory_gib else here)
    return memory


if __name__ == "__main__":
    run(main)
