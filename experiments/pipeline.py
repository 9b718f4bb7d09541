"""The whole of MSRL and its baseline, stage after stage, then the report.

python experiments/pipeline.py [--seed=1] [--model.engine=VLLMEngine]
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from jsonargparse import auto_cli

from data_modules import World
from lit_msrl.cards import JudgementCard
from lit_msrl.cli import newest, run
from lit_msrl.curves import read_curves
from lit_msrl.engines import HFEngine, RolloutEngine, VLLMEngine
from lit_msrl.evaluation import judge, load_weights
from lit_msrl.metrics import compare, summarise
from lit_msrl.outputs import refuse_other_settings, write_whole
from lit_msrl.policy import EMBEDDED, GenerativeRMPolicy
from lit_msrl.prompts import View, parse, render
from lit_msrl.records import JudgementRecord
from lit_msrl.report import RunSummary, StageSummary, print_table, write_report
from lit_msrl.rewards import RewardSum
from lit_msrl.types import TASK_TYPES

ARMS = {
    "msrl": ("stage1_sft", "stage1", "stage2", "cmkd", "stage3"),
    "generative_baseline": ("baseline_sft", "baseline"),
}
FRAMES = 3
MAX_COMPLETION, MAX_LENGTH = 144, 1024  # of the stages: with others vLLM would start anew for each evaluation
ENGINES: dict[str, type[RolloutEngine]] = {"HFEngine": HFEngine, "VLLMEngine": VLLMEngine}
PACKAGES = ("torch", "lightning", "transformers", "peft", "datasets")
VIEWS: dict[str, tuple[View, list[str]]] = {
    "text": ("caption", ["text"]),
    "caption": ("caption", list(TASK_TYPES[1:])),
    "visual": ("visual", list(TASK_TYPES[1:])),
}


@dataclass(frozen=True)
class Model:
    """What all stages and all evaluations share.

    Attributes:
        engine: What samples.
    """

    engine: Literal["HFEngine", "VLLMEngine"] = "HFEngine"


DEFAULT = Model()


def pipeline(
    outputs: str = "outputs/demo",
    seed: int = 0,
    *,
    model: Model = DEFAULT,
    test_size: int = 400,
    ladder_size: int = 96,
    options: list[str] | None = None,
) -> Path:
    """Train both arms on the embedded default, measure them on held-out scenes, write the report.

    What is finished is not done again: interrupt it, run it again, and it goes on.

    Args:
        outputs: Folder of all results.
        seed: Seed of data, order and sampling.
        model: What samples, in all stages and evaluations.
        test_size: Held-out examples of the four multimodal tasks that decide between the arms, each judged in
            both orders.
        ladder_size: Held-out examples per view that follow the judge from stage to stage.
        options: Further options for every stage, such as ``--trainer.max_steps=2``.

    Returns:
        The place of ``report.html``.
    """
    folder, engine = Path(outputs), ENGINES[model.engine]()
    options = [*([] if model == DEFAULT else [f"--model.engine={model.engine}"]), *(options or [])]
    settings = {"seed": seed, "test_size": test_size, "ladder_size": ladder_size, "options": options}
    settings["base"] = (EMBEDDED / "SHA256SUMS").read_text().split()[0]
    refuse_other_settings(folder, settings, option="--outputs")
    stages = [StageSummary("base", "base", 0, 0.0, ladder(folder, "base", None, ladder_size, engine))]
    for arm, names in ARMS.items():
        for name in names:
            done = train(folder, name, seed, options)
            after = ladder(folder, name, newest(folder, name), ladder_size, engine)
            stages.append(
                StageSummary(name, arm, done["steps"], done["seconds"], after, curves(folder, name))
            )
    records = {"base": measure(folder, "base", None, test_size, engine)}
    for arm, names in ARMS.items():
        records[arm] = measure(folder, arm, newest(folder, names[-1]), test_size, engine)
    summary = summarise_run(folder, records, stages, seed, test_size)
    page = write_report(folder, summary)
    print_table(summary, page)
    return page


def train(folder: Path, name: str, seed: int, options: list[str]) -> dict[str, Any]:
    """Run a stage to its end, from its last checkpoint if interrupted; returns its steps and seconds."""
    record = folder / name / "done.json"
    if record.is_file():
        print(f"{name}: done already ({record})", flush=True)
        return json.loads(record.read_text())
    interrupted = newest(folder, name)
    print(f"\n=== {name} {'goes on' if interrupted else ''}", flush=True)
    start = time.perf_counter()
    args = ["fit", f"--outputs={folder}", f"--seed_everything={seed}", f"--data.seed={seed}", *options]
    args += [f"--ckpt_path={interrupted}"] if interrupted else []
    cli = importlib.import_module(f"experiments.{name}").main(args)
    done = {"steps": cli.trainer.global_step, "seconds": round(time.perf_counter() - start, 1)}
    del cli
    gc.collect()
    write_whole(record, json.dumps(done))
    return done


def ladder(
    folder: Path, name: str, checkpoint: Path | None, size: int, engine: RolloutEngine
) -> dict[str, float]:
    """Accuracy after a stage on held-out text, captions and pixels (validation split, one order)."""
    path = folder / "evaluations" / f"after_{name}.json"
    if not path.is_file():
        accuracies = {}
        for view, (shown, tasks) in VIEWS.items():
            records = verdicts(
                checkpoint,
                tasks,
                shown,
                size,
                engine,
                split="validation",
                both_orders=False,
                title=f"after {name}: {view}",
            )
            accuracies[view] = sum(record.correct for record in records) / len(records)
        write_whole(path, json.dumps(accuracies))
    return json.loads(path.read_text())


def measure(
    folder: Path, arm: str, checkpoint: Path | None, size: int, engine: RolloutEngine
) -> list[JudgementRecord]:
    """An arm's judgements of the test scenes, in both orders, from pixels."""
    path = folder / "evaluations" / f"{arm}.jsonl"
    if not path.is_file():
        tasks = list(TASK_TYPES[1:])
        records = verdicts(
            checkpoint, tasks, "visual", size, engine, split="test", both_orders=True, title=f"test: {arm}"
        )
        write_whole(path, "".join(json.dumps(record.to_json()) + "\n" for record in records))
    return [JudgementRecord.from_json(json.loads(line)) for line in path.read_text().splitlines()]


def verdicts(
    checkpoint: Path | None,
    tasks: list[Any],
    view: View,
    size: int,
    engine: RolloutEngine,
    *,
    split: Any,
    both_orders: bool,
    title: str,
):
    """Judgements of the world's held-out examples."""
    policy = GenerativeRMPolicy("tiny", max_length=MAX_LENGTH)
    if checkpoint is not None:
        load_weights(policy, checkpoint)
    return judge(
        policy, engine, test_examples(tasks, size, split), view=view, style="compact",
        max_completion=MAX_COMPLETION, both_orders=both_orders, title=title,
    )  # fmt: skip


def test_examples(tasks: list[Any], size: int, split: Any) -> list[Any]:
    """Examples of scenes that no stage has trained on."""
    from data_modules.media import Decoder

    world, decoder = World(tasks, split=split, seed=99), Decoder(FRAMES)
    return [decoder.example(world.example(index)) for index in range(size)]


def curves(folder: Path, name: str) -> dict[str, Any]:
    """A stage's learning curves, interrupted runs joined; what was done twice counts as done last."""
    joined: dict[str, dict[int, float]] = {}
    parts = (folder / name).glob("version_*")
    for part in sorted(parts, key=lambda path: int(path.name.removeprefix("version_"))):
        for tag, (steps, values) in read_curves(part).items():
            joined.setdefault(tag, {}).update(zip(steps, values, strict=True))
    return {tag: (sorted(curve), [curve[step] for step in sorted(curve)]) for tag, curve in joined.items()}


def summarise_run(
    folder: Path, records: dict[str, list[JudgementRecord]], stages: list[StageSummary], seed: int, size: int
) -> RunSummary:
    """Everything the report shows."""
    return RunSummary(
        arms={arm: summarise(rows, seed=seed) for arm, rows in records.items()},
        comparison=compare(records["msrl"], records["generative_baseline"], seed=seed),
        stages=stages,
        cards=cards(records["msrl"], size),
        seconds=sum(stage.seconds for stage in stages),
        seed=seed,
        versions={name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        settings={"outputs": str(folder), "test examples": size, "cores": os.cpu_count()},
    )


def cards(records: list[JudgementRecord], size: int, count: int = 12) -> list[JudgementCard]:
    """A dozen judgements as a person reads them: the first of each task, failures included as they come."""
    examples = {
        example.id: example for example in test_examples(list(TASK_TYPES[1:]), min(size, 4 * count), "test")
    }
    reward, chosen = RewardSum(), []
    for record in [r for r in records if r.order == "AB" and r.id in examples][:count]:
        prompt = render(examples[record.id], style="compact", swapped=False)
        scores = reward([parse(record.text, prompt.tags)], [prompt])
        parts = {name: float(part[0]) for name, part in scores.parts.items()}
        chosen.append(JudgementCard(prompt, record.text, record.correct, parts, "msrl"))
    return chosen


if __name__ == "__main__":
    run(lambda: auto_cli(pipeline, exit_on_error=False))
