r"""Write captions of the pictures and clips that have none, for stage 2 and CMKD.

Through any OpenAI-compatible endpoint (the key is read from OPENAI_API_KEY and kept nowhere):

  python experiments/caption.py --out=data/captions.jsonl --endpoint=https://api.openai.com/v1 \
      --model=gpt-5 --config experiments/configs/data/cmkd.yaml --price_in=1.25 --price_out=10 --limit=100

or by a vision-language model in this process (a hub id or folder; tiny is the embedded one):

  python experiments/caption.py --out=captions.parquet --model=OpenGVLab/InternVL3_5-8B-HF --device=cuda \
      --data.train=Rows --data.train.path=my/pairs.jsonl --data.train.adapter=generic --data.validation=null

Which data: the options of a stage, --data.* and --config. Training and validation data are captioned; what
has captions already is passed over. Clips are shown as a stage shows them, by --data.num_frames frames.

Run it again to go on after an end of any kind, to try again what failed, or to caption what is new: no medium
is asked about twice, however often it occurs. Ctrl-C finishes what is under way. Then train with
--data.captions=FILE. Exit code: 0; 1 if something failed; 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from data_modules.captions import hashes_beside
from data_modules.hashes import KnownHashes
from experiments.captioning import Captioning, Tally, wanted
from experiments.judging import placed, refuse_both
from experiments.settings import STAGES, read_settings
from lit_msrl.captioners import Captioner, EndpointCaptioner, PolicyCaptioner, Wording
from lit_msrl.cli import run
from lit_msrl.endpoint import Endpoint
from lit_msrl.engines import HFEngine, RolloutEngine
from lit_msrl.outputs import Journal
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import Style

SHOWN = 10  # failures that are spelled out
COLUMNS = pyarrow.schema(
    [
        *((name, pyarrow.string()) for name in ("media", "kind", "caption", "error", "model", "template")),
        *((name, pyarrow.int64()) for name in ("frames", "input_tokens", "output_tokens")),
        ("cut", pyarrow.bool_()),
        ("origin", pyarrow.string()),
    ]
)


@dataclass(frozen=True)
class Options:
    """Who writes captions, and how.

    Attributes:
        out: File of captions, ``.jsonl``; or ``.parquet``, which is written at the end from a
            ``.parquet.jsonl`` beside it.
        model: The model's name at the endpoint; without an endpoint ``tiny``, a hub id or a folder.
        endpoint: Base URL of an OpenAI-compatible API, such as ``http://localhost:8000/v1``.
        style: Wording, ``full`` or ``compact`` (for tiny models); by default as the model needs.
        max_words: Longest caption in words: asked for, and then held to by leaving out sentences at the end.
        max_tokens: Longest reply in tokens, a model's reasoning included.
        temperature: Of sampling; by default the endpoint's own, or 0 in this process.
        num_frames: Frames shown of a clip; by default as the data options say.
        limit: Ask about at most so many media, to see what it costs.
        price_in: Of a million tokens read, in any currency.
        price_out: Of a million tokens written.
        concurrency: Requests to the endpoint at the same time.
        retries: How often a request is repeated that met a busy or broken server or connection; pauses
            grow, or last as long as the server says (Retry-After, up to two minutes).
        timeout: Seconds for one request.
        batch_size: Media at a time in this process.
        max_length: Longest prompt in tokens in this process.
        device: Where the model runs in this process; by default a GPU if there is one.
        dtype: Of its weights; by default bfloat16 on a GPU, else float32.
        seed: Of sampling in this process.
        engine: What samples in this process, e.g. ``VLLMEngine``; by default ``HFEngine``.
    """

    out: str
    model: str
    endpoint: str | None = None
    style: Style | None = None
    max_words: int | None = None
    max_tokens: int = 1024
    temperature: float | None = None
    num_frames: int | None = None
    limit: int | None = None
    price_in: float = 0.0
    price_out: float = 0.0
    concurrency: int = 16
    retries: int = 6
    timeout: float = 120.0
    batch_size: int = 8
    max_length: int = 8192
    device: str | None = None
    dtype: str | None = None
    seed: int = 0
    engine: RolloutEngine | None = None

    def __post_init__(self) -> None:
        if not self.out.endswith((".jsonl", ".parquet")):
            raise ValueError(f"--out={self.out}: a file of captions is a .jsonl or a .parquet file")
        for name in ("max_words", "max_tokens", "num_frames", "batch_size"):
            value = self.__dict__[name]
            if value is not None and value < 1:
                raise ValueError(f"--{name}={value}: must be at least 1")
        refuse_both(self.endpoint, self.engine)

    @property
    def journal(self) -> Path:
        """The file that grows."""
        return Path(self.out if self.out.endswith(".jsonl") else f"{self.out}.jsonl")


def main(args: Sequence[str] | None = None) -> int:
    """Parse the command line and write captions; returns the exit code."""
    options, rest = _parsed(list(sys.argv[1:] if args is None else args))
    data = read_settings([*rest, "--data.captions=null"], _stage(rest)).data
    decode = replace(data.decoder, num_frames=options.num_frames or data.decoder.num_frames)
    wording = Wording(options.style or ("compact" if options.model == "tiny" else "full"), options.max_words)
    labels = {"model": options.model, "template": wording.version}
    tally, stop = Tally(options.price_in, options.price_out), threading.Event()
    journal = Journal(options.journal)
    try:
        before = len(journal.records)
        done = captioned(journal, labels)
        hashes = KnownHashes(hashes_beside(options.out), data.decoder.urls)
        sources = [source for source in (data.train, data.validation) if source is not None]
        requests = islice(wanted(sources, hashes, done, tally, stop), options.limit)
        captioner = captioner_for(options)
        work = Captioning(captioner, wording, decode, journal, tally=tally, labels=labels, stop=stop)
        try:
            work.run(requests)
        except ValueError as error:
            held = f"{tally.captions} captions were written to {options.journal}"
            raise ValueError(f"{error}; {held}, run the same command again to go on") from error
        finally:
            export(options.out, journal.records, before)
    finally:
        journal.close()
    report(options, tally)
    if stop.is_set():
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return int(bool(tally.failures))


def captioned(journal: Journal, labels: dict[str, str]) -> set[str]:
    """The media that the journal has captions of.

    Raises:
        ValueError: They are another model's, or the answer to other words.
    """
    written = [record for record in journal.records if record.get("caption")]
    for record in written:
        other = next((name for name, value in labels.items() if record.get(name) != value), None)
        if other:
            raise ValueError(
                f"{journal.path} holds captions with {other} {record.get(other)!r}, not {labels[other]!r};"
                " choose another --out (training takes several files)"
            )
    return {record["media"] for record in written}


def captioner_for(options: Options) -> Captioner:
    """Who writes.

    Raises:
        ValueError: The options contradict each other, or the model cannot be loaded.
    """
    if options.endpoint is not None:
        endpoint = Endpoint(
            options.endpoint, options.model, options.concurrency, options.retries, options.timeout
        )
        return EndpointCaptioner(
            endpoint,
            max_tokens=options.max_tokens,
            max_words=options.max_words,
            temperature=options.temperature,
        )
    device, dtype = placed(options.device, options.dtype)
    policy = GenerativeRMPolicy(options.model, dtype=dtype, max_length=options.max_length)
    return PolicyCaptioner(
        policy.to(device).eval(),
        options.engine or HFEngine(),
        batch_size=options.batch_size,
        max_tokens=options.max_tokens,
        max_words=options.max_words,
        temperature=options.temperature or 0.0,
        seed=options.seed,
    )


def export(out: str, records: Sequence[dict[str, Any]], before: int) -> None:
    """Write the Parquet file, whole or not at all: all captions, and the failures of this run.

    Args:
        out: The file; nothing is written if it is no Parquet file.
        records: The journal's.
        before: How many of them earlier runs wrote.
    """
    if not out.endswith(".parquet"):
        return
    rows = [
        {name: record.get(name) for name in COLUMNS.names}
        for number, record in enumerate(records)
        if record.get("caption") or number >= before
    ]
    partial = f"{out}.partial"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=COLUMNS), partial)
    os.replace(partial, out)


def report(options: Options, tally: Tally) -> None:
    """Say what happened."""
    cut = f" ({tally.cut} of them cut to whole sentences)" if tally.cut else ""
    print(f"{options.out}: {tally.captions} captions written{cut}, {tally.there} there before")
    print(f"media looked at: {tally.seen}, of these {tally.repeated} repeated; {tally.cost}")
    if not tally.seen and not tally.failures:
        print("nothing to caption: every example has captions or no media")
    if tally.failures:
        print(f"failed: {len(tally.failures)}; run the same command again to try them again")
        for origin, problem in tally.failures[:SHOWN]:
            print("  " + (f"{origin}: " if origin else "") + problem)
        if len(tally.failures) > SHOWN:
            print(f"  … the rest: field 'error' in {options.journal}")


def _parsed(words: list[str]) -> tuple[Options, list[str]]:
    """Our options, and those that say which data."""
    names = {field.name for field in fields(Options)} | {"help"}
    own: list[str] = []
    data: list[str] = []
    taking = data
    for word in words:
        if word.startswith("-"):
            taking = own if word == "-h" or re.split(r"[.=]", word[2:])[0] in names else data
        taking.append(word)
    parser = ArgumentParser(
        prog="caption.py", description=__doc__, exit_on_error=False, formatter_class=_Manual
    )
    parser.add_class_arguments(Options)
    found = parser.instantiate(parser.parse_args(own))
    return Options(**{name: found[name] for name in names - {"help"}}), data


class _Manual(DefaultHelpFormatter):
    """Help whose description keeps its lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text


def _stage(words: list[str]) -> str:
    """The stage whose options these are: that of the last configuration called like one, or CMKD."""
    called = [Path(word.partition("=")[2] or word).stem for word in words]
    return next((stem for stem in reversed(called) if stem in STAGES), "cmkd")


if __name__ == "__main__":
    run(lambda: sys.exit(main()))
