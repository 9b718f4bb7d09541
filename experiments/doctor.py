"""What would stop or spoil a run, said before it: data, prompt lengths, contamination, memory, disk.

python experiments/doctor.py --config experiments/configs/stage3.yaml [--against bench.jsonl:prompt ...]

Takes a stage's options and reads them as the stage does; no weight is loaded and nothing is trained. The
stage is named by ``--stage``, or by a configuration called like one. Exit code 1 when something is wrong.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import median

from rich.console import Console
from rich.table import Table

from data_modules import CaptionPreferenceDataModule, Source, TextPreferenceDataModule
from data_modules.captions import Captions
from data_modules.contamination import NearDuplicate, benchmark_prompts, near_duplicates
from data_modules.pictures import benchmark_pictures, near_pictures
from data_modules.survey import Check, Group, Survey, survey
from experiments.settings import (
    STAGES,
    Settings,
    budget_of,
    device_gib,
    policy_of,
    read_settings,
)
from lit_msrl.cli import run
from lit_msrl.footprint import ModelSize, Step, estimate, trained_weights
from lit_msrl.plan import GIB, show
from lit_msrl.sizes import Lengths, adapter_rank, device_count, read_step, size_of
from lit_msrl.types import PreferenceExample

SHOWN = 5  # lines of a kind that are spelled out
KEY = ("role", "dataset", "task")
NEEDS = {"stage1_sft": ("rationale",), "baseline_sft": ("rationale", "captions"), "cmkd": ("captions",)}


def main(args: list[str] | None = None) -> int:
    """Examine a stage; returns the number of problems."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--stage", choices=STAGES, help="by default what a --config is called")
    parser.add_argument("--rows", type=int, default=2000, help="examples looked at per source; 0 for all")
    parser.add_argument("--against", action="append", default=[], help="a benchmark's FILE:COLUMN of prompts")
    parser.add_argument(
        "--against_pictures", action="append", default=[], help="BENCHMARK=DATA, as evaluate.py reads them"
    )
    parser.add_argument("--gib", type=float, help="memory of the device it will run on, in GiB")
    parser.add_argument("--devices", type=int, help="all GPUs of all nodes (default: as the trainer says)")
    options, rest = parser.parse_known_args(args)
    return Doctor(read_settings(rest, options.stage), options).examine()


class Doctor:
    """Looks at one part after another, and remembers what is wrong."""

    def __init__(self, settings: Settings, options: argparse.Namespace) -> None:
        self.settings, self.options, self.data = settings, options, settings.data
        batch = {"batch_size": settings.data.batch_size}
        self.config = {"model": settings.model, "data": batch, "trainer": settings.trainer}
        self.devices = options.devices or device_count(settings.trainer)
        self.policy = policy_of(settings.model)
        self.budget = budget_of(self.policy, settings.model)
        self.console = Console(highlight=False)
        self.problems: list[str] = []
        self.benchmarks = {benchmark: benchmark_prompts(benchmark) for benchmark in options.against}
        self.pictures = {
            name: benchmark_pictures(name, self.data.decoder) for name in options.against_pictures
        }

    def examine(self) -> int:
        """Everything; returns the number of problems."""
        surveys = {role: self.survey(source, role) for role, source in self.sources()}
        self.show_data(surveys)
        self.show_prompts(surveys)
        for benchmark in self.benchmarks:
            self.show_contamination(surveys, benchmark)
        for benchmark in self.pictures:
            self.show_repeated_pictures(surveys, benchmark)
        self.show_memory(max((found.longest[0][0] for found in surveys.values() if found.longest), default=0))
        for problem in self.problems:
            self.say(f"[red]problem:[/] {problem}")
        if not self.problems:
            self.say("[green]nothing found that would stop or spoil this run[/]")
        return len(self.problems)

    def say(self, line: str) -> None:
        """A line, however long."""
        self.console.print(line, soft_wrap=True)

    def sources(self) -> Iterator[tuple[str, Source]]:
        """The data module's sources by their role."""
        replay = self.data.replay if isinstance(self.data, CaptionPreferenceDataModule) else None
        roles = {"train": self.data.train, "replay": replay, "validation": self.data.validation}
        yield from ((role, source) for role, source in roles.items() if source is not None)

    def survey(self, source: Source, role: str) -> Survey:
        """Look through a source and note what is wrong with it."""
        accept = TextPreferenceDataModule.check if role == "replay" else self.data.check
        needs = NEEDS.get(self.settings.stage, ()) if role == "train" else ()
        check = partial(_complete, accept, needs, self.data.captions)
        rows, decoder = self.options.rows or None, self.data.decoder
        looks = bool(self.pictures) and role != "validation"
        found = survey(
            source, check=check, decoder=decoder, tokens=self.budget.tokens, rows=rows, pictures=looks
        )
        for kind, lines in (("rows do not fit", found.refused), ("media cannot be read", found.unreadable)):
            if lines:
                self.problems.append(f"{role}: {len(lines)} {kind}: " + "; ".join(lines[:SHOWN]))
        looked_at = found.examples + found.uncaptioned
        if found.uncaptioned > looked_at / 10:
            self.problems.append(f"{role}: {found.uncaptioned} of {looked_at} rows have no caption")
        size = self.data.batch_size
        if found.examples < size and role != "validation":
            self.problems.append(f"{role}: {found.examples} examples do not fill a batch of {size}")
        if found.repeated_ids:
            often, _ = found.ids.most_common(1)[0]
            self.problems.append(f"{role}: {found.repeated_ids} examples repeat an id, such as {often!r}")
        return found

    def show_data(self, surveys: dict[str, Survey]) -> None:
        """Rows per source and task, and which side wins."""
        table = _table("Data", *KEY, "examples", "1 better", "2 better", "tie", "A better")
        for key, group in _groups(surveys):
            share = group.shown_first / max(group.decided, 1)
            sides = [str(group.winners[winner]) for winner in (1, 2, "tie")]
            table.add_row(*key, str(group.examples), *sides, f"{share:.0%}" if group.decided else "-")
            if group.lopsided():
                self.problems.append(f"{' '.join(key)}: A is better in {share:.0%} of the examples")
        self.console.print(table)
        for role, found in surveys.items():
            part = "all" if found.ended else f"the first {self.options.rows} examples"
            rows = f" of {found.left_out['rows']} rows" if found.left_out["rows"] else ""
            ties = f", {found.left_out['ties']} ties left out" if found.left_out["ties"] else ""
            held = found.left_out["held_out"]
            held = f", {held} rows left out that a benchmark tests on" if held else ""
            bad = f", {len(found.refused)} refused, {len(found.unreadable)} media unreadable"
            bad += f", {found.uncaptioned} without captions (left out)" if self.data.captions else ""
            self.say(f"{role}: {part}{rows}{ties}{held}{bad}")

    def show_prompts(self, surveys: dict[str, Survey]) -> None:
        """Lengths in tokens, before anything is shrunk."""
        limit = self.budget.limit
        title = f"Prompts in tokens (limit {limit}: model.policy.max_length less model.max_completion)"
        table = _table(title, *KEY, "median", "95 %", "longest", "over the limit")
        for key, group in _groups(surveys):
            counts = sorted(group.tokens)
            if counts:
                most, over = counts[int(0.95 * (len(counts) - 1))], sum(count > limit for count in counts)
                table.add_row(*key, f"{median(counts):.0f}", str(most), str(counts[-1]), str(over))
                if key[-1] == "text" and over > len(counts) / 10:
                    self.problems.append(f"{' '.join(key)}: {over} of {len(counts)} prompts are too long")
        self.console.print(table)
        for role, found in surveys.items():
            listed = ", ".join(f"{name} ({tokens})" for tokens, name in found.longest)
            self.say(f"{role}, longest: {listed or 'none could be counted'}")
        self.say("Over the limit: media are shrunk first; what is too long even so is left out, and counted.")

    def show_contamination(self, surveys: dict[str, Survey], benchmark: str) -> None:
        """Training prompts that a benchmark has too."""
        prompts = self.benchmarks[benchmark]
        training = [p for role, found in surveys.items() if role != "validation" for p in found.prompts]
        matches = list(near_duplicates(training, prompts))
        telling = [match for match in matches if match.telling]
        self.say(
            f"{benchmark}: {len(matches)} of {len(training)} training prompts nearly are one of its"
            f" {len(prompts)}, {len(telling)} of them more than stock phrases"
        )
        if telling:
            listed = "; ".join(map(_spelled, telling[:SHOWN]))
            self.problems.append(f"{len(telling)} training prompts are in {benchmark}: {listed}")

    def show_repeated_pictures(self, surveys: dict[str, Survey], benchmark: str) -> None:
        """Training pictures that look like a benchmark's."""
        training = [each for found in surveys.values() for each in found.pictures]
        known = self.pictures[benchmark]
        matches = list(near_pictures(training, known))
        self.say(
            f"{benchmark}: {len(matches)} of {len(training)} training pictures nearly are one of its"
            f" {len(known)}"
        )
        if matches:
            listed = "; ".join(
                f"{m.training!r} is {m.benchmark!r} ({m.distance} of 64)" for m in matches[:SHOWN]
            )
            self.problems.append(f"{len(matches)} training pictures look like those of {benchmark}: {listed}")

    def show_memory(self, longest: int) -> None:
        """Memory of a device (``lit_msrl.plan``), and disk."""
        size = size_of(self.policy.model, adapter_rank(self.config))
        lengths = Lengths(min(longest, self.budget.limit) or None, devices=self.devices)
        step = read_step(self.config, lengths)
        memory, gib = estimate(size, step), self.options.gib or device_gib(self.settings.trainer)
        show(self.console, size, step, memory, gib * GIB)
        if gib and not memory.fits(gib * GIB):
            self.problems.append(
                f"about {memory.peak / GIB:.1f} GiB of memory are needed, {gib:.1f} are there"
            )
        cache = self.data.decoder.cache
        written = self.settings.checkpoints + 1  # the oldest goes when the newest is there
        disk = (written * checkpoint_bytes(size, step) + (cache.max_bytes if cache else 0)) / GIB
        folder = self.settings.outputs
        free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free / GIB
        self.say(f"disk: {disk:.2f} GiB needed for checkpoints and cache, {free:.1f} free")
        if disk > free:
            self.problems.append(f"{disk:.1f} GiB of disk are needed under {folder}, {free:.1f} are free")


def checkpoint_bytes(size: ModelSize, step: Step) -> float:
    """What a checkpoint holds: weights and optimizer; with adapters only what trains."""
    trained = trained_weights(size, step)
    weights = 4.0 * trained if size.adapter_parameters else size.parameters * step.weight_bytes
    return weights + trained * step.optimizer_bytes


def _complete(
    accept: Check, needs: Sequence[str], captions: Captions | None, example: PreferenceExample
) -> PreferenceExample | None:
    """What the data module accepts and the stage can learn from; ``None`` if there is no caption of it."""
    joined = example if captions is None else captions.join(example)
    accepted = joined and accept(joined)
    if accepted is None:
        return None
    example = accepted
    parts = {"rationale": example.rationale, "captions": example.captions}
    missing = [name for name in needs if not parts[name]]
    if missing:
        raise ValueError(
            f"example {example.id!r} of {example.source!r} has no {missing[0]}, which the stage needs"
        )
    return example


def _groups(surveys: dict[str, Survey]) -> Iterator[tuple[tuple[str, str, str], Group]]:
    for role, found in surveys.items():
        yield from (((role, *key), group) for key, group in sorted(found.groups.items()))


def _spelled(match: NearDuplicate) -> str:
    return f"{match.training!r} is {match.benchmark} ({match.similarity:.2f}): {match.prompt[:60]!r}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in KEY else "right", overflow="fold")
    return table


if __name__ == "__main__":
    run(lambda: sys.exit(min(main(), 1)))
