"""One file per benchmark: ``to_example(row)``, as in ``data_modules.datasets``, and ``BENCHMARK``.

``BENCHMARK`` (``lit_msrl.benchmark.Benchmark``) holds the benchmark's protocols: the official one and those
that other papers used, each from its scripts. ``evaluate.py --benchmark NAME`` finds the file by its name;
a dotted name finds a module of yours.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_modules.sources import Rows
from lit_msrl.benchmark import Benchmark
from lit_msrl.types import PreferenceExample


def names() -> list[str]:
    """The benchmarks of this folder."""
    return sorted(p.stem for p in Path(__file__).parent.glob("[a-z]*.py") if p.stem != "shared")


def find(name: str) -> Benchmark:
    """A benchmark by the name of its file, or by a dotted module name.

    Raises:
        ValueError: There is none.
    """
    try:
        return importlib.import_module(_module(name)).__dict__["BENCHMARK"]
    except (ModuleNotFoundError, KeyError) as error:
        raise ValueError(
            f"unknown benchmark {name!r}; use {', '.join(names())} or the dotted name of a module"
        ) from error


def load(
    name: str,
    data: str,
    *,
    options: Mapping[str, Any] | None = None,
    media_root: str | None = None,
    subset: str | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> list[PreferenceExample]:
    """The examples of a benchmark, ties included, media not decoded.

    Rows about the same candidates are numbered, so that ids are unique and do not depend on the order of
    rows.

    Args:
        name: The benchmark, as in ``find``.
        data: A file, or the id of a hub dataset.
        options: Keyword arguments of its ``to_example``.
        media_root: Where relative media paths start; by default the folder of the file.
        subset: The hub dataset's configuration, if not the benchmark's own.
        split: The hub dataset's split, if not the benchmark's own.
        limit: Read at most this many rows.

    Raises:
        ValueError: The data cannot be read; the message names file, row and field.
    """
    benchmark = find(name)
    rows = Rows(
        data,
        f"{_module(name)}.to_example",
        options=dict(options or {}),
        media_root=media_root,
        subset=subset or benchmark.subset,
        split=split or benchmark.split,
        limit=limit,
        keep_ties=True,
    )
    rows.check()
    examples = _unique([row["example"] for row in rows.dataset()])
    if not examples:
        raise ValueError(f"{data}: holds no examples of {benchmark.title}")
    return examples


def _unique(examples: list[PreferenceExample]) -> list[PreferenceExample]:
    seen: Counter[str] = Counter()
    unique = []
    for example in sorted(
        examples, key=lambda e: (e.id, str(e.winner), json.dumps(dict(e.facts), sort_keys=True))
    ):
        seen[example.id] += 1
        if seen[example.id] > 1:
            facts = {"item": example.id, **example.facts}  # not independent of the first
            example = replace(example, id=f"{example.id}~{seen[example.id]}", facts=facts)
        unique.append(example)
    return unique


def _module(name: str) -> str:
    return name if "." in name else f"data_modules.benchmarks.{name}"
