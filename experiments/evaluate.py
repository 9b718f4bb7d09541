"""Measure a judge on a benchmark, score records made by anyone, compare two judges.

python experiments/evaluate.py --benchmark=rm_bench --data=chat_filtered.json --options='{"domain": "chat"}' \
    --model=tiny --out=outputs/evaluations/tiny
python experiments/evaluate.py score --benchmark=rm_bench --data=FILE --records=FILE [--json]
python experiments/evaluate.py compare OUT_A OUT_B
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from tqdm import tqdm

from data_modules.benchmarks import find, load, names
from data_modules.content import require
from data_modules.media import Decoder, MediaError
from experiments.judging import Asking, judge_for, sampler, trained_as
from lit_msrl.benchmark import compare, fingerprint, score
from lit_msrl.cli import run
from lit_msrl.evaluation import Plan, examine
from lit_msrl.judges import Judge
from lit_msrl.outputs import Journal, refuse_other_settings, write_whole
from lit_msrl.records import JudgementRecord, read_records, to_fields
from lit_msrl.scorecard import show, show_comparison
from lit_msrl.types import PreferenceExample

RECORDS, SCORES, SETTINGS = "records.jsonl", "scores.json", "settings.json"
DESCRIPTIONS = {
    "judge": "Measure a judge on a benchmark. `evaluate.py score` scores records made by anyone, "
    "`evaluate.py compare` compares two judges.",
    "score": "Score records made by anyone.",
    "compare": "Compare two judges on the same examples, from the folders evaluate.py made.",
}
FLAGS = ("--json", "--partial", "--early_stop")  # need no "=true"


@dataclass(frozen=True)
class Material:
    """What is judged.

    Attributes:
        benchmark: A module of ``data_modules.benchmarks``, or the dotted name of one of yours.
        data: Its file, or the id of a hub dataset.
        options: Options of the benchmark's reader, as JSON, such as ``{"domain": "chat"}``.
        media_root: Where relative paths of media start; by default the folder of the file.
        subset: The hub dataset's configuration, if not the benchmark's own.
        split: The hub dataset's split, if not the benchmark's own.
        limit: Read at most this many rows.
    """

    benchmark: str
    data: str
    options: dict[str, Any] | None = None
    media_root: str | None = None
    subset: str | None = None
    split: str | None = None
    limit: int | None = None

    def examples(self) -> list[PreferenceExample]:
        """The benchmark's examples."""
        fields = {name: value for name, value in vars(self).items() if name not in ("benchmark", "data")}
        return load(self.benchmark, self.data, **fields)


def ask(material: Material, asking: Asking) -> None:
    """Judge a benchmark and score it."""
    find(material.benchmark)
    examples = material.examples()
    folder, trained = Path(asking.out), trained_as(asking)
    plan = Plan(
        view=asking.view or trained.get("view", "visual"),
        style=asking.style or trained.get("style", "compact" if asking.model == "tiny" else "full"),
        both_orders=asking.orders == "both",
        votes=asking.votes,
        early_stop=asking.early_stop,
        batch_size=asking.batch_size,
    )
    longest = asking.max_completion or trained.get("max_completion", 144 if asking.model == "tiny" else 1024)
    settings = _settings(material, asking, plan, examples) | {"max_completion": longest}
    refuse_other_settings(folder, settings, option="--out")
    if not (folder / SCORES).is_file():  # else all was judged
        require(media for example in examples for media in example.media)
    with closing(Journal(folder / RECORDS)) as journal:
        done = read_records(journal.path, examples) if journal.records else []
        if len(examples) * plan.judgements > len(done):
            judge = judge_for(asking, trained, longest, settings["temperature"])
            try:
                _write(journal, judge, examples, plan, done, Decoder(asking.num_frames))
            except MediaError as error:
                raise ValueError(f"{material.data}: {error}") from error
    _score(material, examples, folder / RECORDS, as_json=asking.json, scores=folder / SCORES)


def _write(
    journal: Journal,
    judge: Judge,
    examples: Sequence[PreferenceExample],
    plan: Plan,
    done: Sequence[JudgementRecord],
    decoder: Decoder,
) -> None:
    """Write each judgement down as soon as it is there."""
    right, unread = sum(r.correct for r in done), sum(r.preferred is None for r in done)
    total = len(examples) * plan.judgements
    with tqdm(total=total, initial=len(done), desc="judging") as bar:
        for record in examine(judge, examples, plan, decode=decoder.example, done=done):
            journal.append(to_fields(record))
            right, unread = right + record.correct, unread + (record.preferred is None)
            bar.update()
            bar.set_postfix_str(f"right {right / bar.n:.0%}, unread {unread / bar.n:.0%}", refresh=False)


def _settings(
    material: Material, asking: Asking, plan: Plan, examples: Sequence[PreferenceExample]
) -> dict[str, Any]:
    temperature = (0.0 if asking.votes == 1 else 1.0) if asking.temperature is None else asking.temperature
    plans = {name: value for name, value in asdict(plan).items() if name != "batch_size"}
    who = {"model": asking.model, "endpoint": asking.endpoint, "num_frames": asking.num_frames}
    version = {"version": find(material.benchmark).version, "examples": fingerprint(examples)}
    drawn = {"temperature": temperature, "seed": asking.seed} | sampler(asking)
    return asdict(material) | version | who | plans | drawn


def _score(
    material: Material,
    examples: Sequence[PreferenceExample],
    records: Path,
    *,
    as_json: bool,
    partial: bool = False,
    scores: Path | None = None,
) -> None:
    benchmark = find(material.benchmark)
    card = score(benchmark, examples, read_records(records, examples), partial=partial)
    text = json.dumps(card.to_json(), indent=2, allow_nan=False) + "\n"
    if scores is not None:
        write_whole(scores, text)
    if as_json:
        print(text, end="")
        return
    console = Console()
    show(console, benchmark, card)
    if scores is not None:
        console.print(f"Records: {records}\nScores: {scores}", soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Scoring:
    """What is scored.

    Attributes:
        records: The file of records; its format is described in ``lit_msrl/records.py``.
        partial: Score what was judged, even if that is not all.
        json: Print JSON instead of tables.
    """

    records: str
    partial: bool = False
    json: bool = False


def score_records(material: Material, scoring: Scoring) -> None:
    """Score records made by anyone."""
    find(material.benchmark)
    _score(
        material, material.examples(), Path(scoring.records), as_json=scoring.json, partial=scoring.partial
    )


def compare_runs(a: str, b: str, *, as_json: bool) -> None:
    """Compare two folders of ``evaluate.py`` that hold the same examples."""
    held = [_held(folder) for folder in (a, b)]
    if held[0]["examples"] != held[1]["examples"] or held[0]["benchmark"] != held[1]["benchmark"]:
        raise ValueError(f"{a} and {b} were judged on other examples; compare judges on the same")
    material = Material(**{name: held[0][name] for name in Material.__dataclass_fields__})
    examples = material.examples()
    if fingerprint(examples) != held[0]["examples"]:
        raise ValueError(f"{material.data} has changed since {a} was judged")
    first, second = (read_records(Path(folder) / RECORDS, examples) for folder in (a, b))
    sections, tests = compare(find(material.benchmark), examples, first, second)
    if as_json:
        figures = {s.protocol: [asdict(f) for f in s.figures] for s in sections}
        print(json.dumps({"a": a, "b": b, "differences": figures, "tests": tests}, indent=2))
        return
    show_comparison(Console(), f"{find(material.benchmark).title}: {a} minus {b}", sections, tests)


def _held(folder: str) -> dict[str, Any]:
    path = Path(folder) / SETTINGS
    if not path.is_file():
        raise ValueError(f"{path}: no such file; compare takes two folders that evaluate.py made with --out")
    return json.loads(path.read_text(encoding="utf-8"))


def main(args: Sequence[str] | None = None) -> None:
    """Parse the command line and do what it says."""
    words = list(sys.argv[1:] if args is None else args)
    words = [f"{word}=true" if word in FLAGS else word for word in words]
    command = words.pop(0) if words and words[0] in ("score", "compare") else "judge"
    parser = ArgumentParser(
        prog=f"evaluate.py {command}".removesuffix(" judge"),
        description=f"{DESCRIPTIONS[command]} Benchmarks: {', '.join(names())}.",
        exit_on_error=False,
    )
    if command == "compare":
        parser.add_argument("a", type=str, help="A folder made with --out.")
        parser.add_argument("b", type=str, help="Another, of the same data.")
        parser.add_argument("--json", type=bool, default=False, help="Print JSON.")
        found = parser.parse_args(words)
        compare_runs(found.a, found.b, as_json=found.json)
        return
    second = Scoring if command == "score" else Asking
    parser.add_class_arguments(Material)
    parser.add_class_arguments(second)
    found = parser.instantiate(parser.parse_args(words))
    material = Material(**{name: found[name] for name in Material.__dataclass_fields__})
    rest = second(**{name: found[name] for name in second.__dataclass_fields__})
    ask(material, rest) if isinstance(rest, Asking) else score_records(material, rest)


if __name__ == "__main__":
    run(main)
