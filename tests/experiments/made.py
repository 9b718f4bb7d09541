"""How the tests run a stage: in this process, as its script does, on very little."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from lit_msrl.cli import MSRLCLI, run

REPOSITORY = Path(__file__).parents[2]
REALDATA = REPOSITORY.parent / "shared" / "realdata"
STAGES = ("stage1_sft", "stage1", "stage2", "cmkd", "stage3", "baseline_sft", "baseline", "discriminative")
RL = ("stage1", "stage2", "stage3", "baseline")
BATCH = {"stage2": 5}  # four new examples and a replayed one

SHORT = ["--trainer.max_steps=2", "--model.max_completion=16", "--trainer.enable_progress_bar=false"]
SEEN = ["--trainer.val_check_interval=2", "--data.validation.size=4"]
UNSEEN = ["--trainer.limit_val_batches=0"]


def command(stage: str, outputs: Path, *options: str) -> list[str]:
    """Two steps of a stage on a few short examples, from the base model; later options win."""
    small = [f"--data.batch_size={BATCH.get(stage, 2)}"]
    small += ["--model.group_size=2"] if stage in RL else []
    small += ["--data.train.size=8", "--model.samples=2"] if stage == "cmkd" else []
    short = [option for option in SHORT if stage != "discriminative" or "max_completion" not in option]
    return ["fit", f"--outputs={outputs}", "--start_from=base", *short, *small, *options]


def call(stage: str, args: list[str]) -> MSRLCLI:
    """A stage's script in this process; ends as the script does (``SystemExit`` on an error)."""
    ran: list[MSRLCLI] = []
    script = importlib.import_module(f"experiments.{stage}")
    run(lambda: ran.append(script.main(args)))
    return ran[0]


def write_rows(path: Path, *rows: dict) -> str:
    """A JSONL file; its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
