"""Grey pictures, told apart by how grey they are, and the captions that a server on localhost gives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from experiments.caption import main
from tests.endpoint import Answer, pictures_of, said
from tests.experiments.made import write_rows

TEXTS = {"prompt": "what is it?", "candidate_1": "a cat", "candidate_2": "a dog", "winner": 1}


def paint(path: Path, level: int) -> str:
    """A grey picture; its name."""
    Image.new("RGB", (16, 16), (10 * level,) * 3).save(path)
    return path.name


def levels(request: dict[str, Any]) -> list[int]:
    """Which grey pictures a request shows."""
    return [round(picture.getpixel((8, 8))[0] / 10) for picture in pictures_of(request)]  # type: ignore[index]


def describe(request: dict[str, Any]) -> Answer:
    """What the server says of a picture."""
    return said(f"A picture of level {levels(request)[0]}.", tokens=7)


def rows_of(folder: Path, count: int) -> str:
    """So many rows, each with a picture of its own."""
    rows = [{**TEXTS, "id": str(i), "image": paint(folder / f"{i}.png", i)} for i in range(count)]
    return write_rows(folder / "pairs.jsonl", *rows)


def options(out: Path, data: str, url: str | None, *more: str) -> list[str]:
    asked = [f"--endpoint={url}", "--model=m", "--retries=4"] if url else ["--model=tiny"]
    source = ["--data.train=Rows", f"--data.train.path={data}", "--data.validation=null"]
    return [f"--out={out}", *asked, *source, *more]


def write(out: Path, data: str, url: str | None, *more: str) -> int:
    return main(options(out, data, url, *more))


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def captions(out: Path) -> list[str]:
    return sorted(record["caption"] for record in records(out) if record["caption"])
