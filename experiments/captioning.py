"""Captions for what has none: which media are asked about, many at a time, and what came of it."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tqdm import tqdm

from data_modules.content import MediaError
from data_modules.hashes import KnownHashes
from data_modules.sources import Source
from lit_msrl.captioners import Captioner, Outcome, Wording
from lit_msrl.outputs import Journal
from lit_msrl.types import Media, PreferenceExample

Decode = Callable[[Media], Media]


@dataclass(frozen=True)
class Request:
    """A medium to be captioned, or the reason why it cannot be.

    Attributes:
        key: Its content hash.
        media: Not decoded.
        example: Where it occurs first.
        origin: The file, row and field of that.
        problem: Why there is nothing to ask about.
    """

    key: str | None
    media: Media | None
    example: PreferenceExample | None
    origin: str
    problem: str = ""


@dataclass
class Tally:
    """What happened so far in this run.

    Attributes:
        price_in: Of a million tokens read.
        price_out: Of a million tokens written.
        seen: Media looked at.
        there: Of these, captioned by an earlier run.
        repeated: Of these, seen before in this run.
        captions: Written.
        cut: Of these, shortened.
        input_tokens: Read.
        output_tokens: Written.
        failures: Place and reason of each.
        in_a_row: Requests that failed since the last caption.
    """

    price_in: float
    price_out: float
    seen: int = 0
    there: int = 0
    repeated: int = 0
    captions: int = 0
    cut: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    in_a_row: int = 0

    def add(self, request: Request, outcome: Outcome) -> None:
        """Count an outcome."""
        self.input_tokens += outcome.input_tokens or 0
        self.output_tokens += outcome.output_tokens or 0
        if outcome.problem:
            self.failures.append((request.origin, outcome.problem))
            self.in_a_row += not request.problem
        else:
            self.captions, self.cut, self.in_a_row = self.captions + 1, self.cut + outcome.cut, 0

    @property
    def cost(self) -> str:
        """Tokens, and money where prices are known."""
        tokens = f"{short(self.input_tokens)} + {short(self.output_tokens)} tokens"
        spent = (self.input_tokens * self.price_in + self.output_tokens * self.price_out) / 1e6
        return f"{tokens}, cost {spent:.4g}" if self.price_in or self.price_out else tokens


def short(count: int) -> str:
    """A number of tokens in few characters.

    Example:
        >>> short(950), short(12_345), short(3_456_789)
        ('950', '12.3k', '3.46M')
    """
    if count < 1000:
        return str(count)
    return f"{count / 1e3:.1f}k" if count < 1e6 else f"{count / 1e6:.2f}M"


def wanted(
    sources: Iterable[Source], hashes: KnownHashes, done: set[str], tally: Tally, stop: threading.Event
) -> Iterator[Request]:
    """The media that have no caption, each once, and what cannot be read.

    Args:
        sources: Where examples come from; those with captions, or without media, are passed over.
        hashes: Content hashes.
        done: Hashes of media that are captioned; it grows by what is handed out.
        tally: Counts what is passed over.
        stop: Ends it.
    """
    before = frozenset(done)
    refused: list[str] = []
    for source in sources:
        for example in source.examples(refused.append):
            if stop.is_set():
                return
            yield from _refused(refused)
            for media in () if example.captions else example.media:
                tally.seen += 1
                request = _request(example, media, hashes)
                if request.key not in done:
                    done |= {request.key} - {None}  # type: ignore[arg-type]
                    yield request
                else:
                    tally.there += request.key in before
                    tally.repeated += request.key not in before
        yield from _refused(refused)


def _refused(refused: list[str]) -> Iterator[Request]:
    while refused:
        yield Request(None, None, None, "", f"row left aside: {refused.pop(0)}")


def _request(example: PreferenceExample, media: Media, hashes: KnownHashes) -> Request:
    origin = media.origin or f"example {example.id!r} of {example.source or 'unnamed source'}"
    try:
        return Request(hashes(media), media, example, origin)
    except MediaError as error:
        return Request(None, media, example, origin, str(error))


class Captioning:
    """Asks for captions and writes each down before it is counted.

    Args:
        captioner: Who writes them.
        wording: What is asked.
        decode: Makes frames of a medium.
        journal: Where records are kept.
        tally: What is counted.
        labels: Fields of every record.
        stop: Set when no further medium shall be taken; the first Ctrl-C does it.
    """

    def __init__(
        self,
        captioner: Captioner,
        wording: Wording,
        decode: Decode,
        journal: Journal,
        *,
        tally: Tally,
        labels: dict[str, Any],
        stop: threading.Event,
    ) -> None:
        self.captioner, self.wording, self.decode, self.journal = captioner, wording, decode, journal
        self.tally, self.labels, self.stop = tally, labels, stop
        self.bar = tqdm(desc="captions", unit=" media")

    def run(self, requests: Iterator[Request]) -> None:
        """Work through the requests; returns early when asked to stop.

        Raises:
            ValueError: The captioner cannot be used, or failed so often that it would go on failing.
        """
        try:
            asyncio.run(self._run(requests))
        except ExceptionGroup as errors:
            expected, bugs = errors.split(ValueError)
            raise bugs or expected.exceptions[0] from None  # type: ignore[union-attr]
        except asyncio.CancelledError:  # a second Ctrl-C
            pass
        finally:
            self._show()
            self.bar.close()

    async def _run(self, requests: Iterator[Request]) -> None:
        loop, turn = asyncio.get_running_loop(), asyncio.Lock()
        current = asyncio.current_task()
        assert current is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._asked_to_stop, current)
        clock = loop.create_task(self._clock())
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.captioner.at_once):
                    group.create_task(self._work(requests, turn))
        finally:
            clock.cancel()
            await self.captioner.close()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _asked_to_stop(self, task: asyncio.Task[None]) -> None:
        if self.stop.is_set():
            task.cancel()
            return
        self.stop.set()
        tqdm.write("stopping: waiting for what is under way (Ctrl-C again: not waiting)", file=sys.stderr)

    async def _work(self, requests: Iterator[Request], turn: asyncio.Lock) -> None:
        while batch := await self._take(requests, turn):
            shown = [await asyncio.to_thread(self._decoded, request) for request in batch]
            asked = [frames for frames in shown if isinstance(frames, Media)]
            prompts = [
                self.wording.ask(request.example, frames)  # type: ignore[arg-type]
                for request, frames in zip(batch, shown, strict=True)
                if isinstance(frames, Media)
            ]
            written = iter(await self.captioner.write(prompts) if asked else [])
            for request, frames in zip(batch, shown, strict=True):
                count = len(frames.frames) if isinstance(frames, Media) else 0
                self._keep(request, next(written) if count else Outcome(problem=str(frames)), count)

    async def _take(self, requests: Iterator[Request], turn: asyncio.Lock) -> list[Request]:
        """The next few; reading and hashing go on beside the requests, one reader at a time."""
        async with turn:
            return await asyncio.to_thread(lambda: list(islice(requests, self.captioner.together)))

    def _decoded(self, request: Request) -> Media | str:
        """The medium's frames, or why there are none."""
        if request.media is None or request.problem:
            return request.problem
        try:
            return self.decode(request.media)
        except MediaError as error:
            return str(error)

    def _keep(self, request: Request, outcome: Outcome, frames: int) -> None:
        self.journal.append(
            {
                "media": request.key,
                "kind": request.media.kind if request.media else None,
                "caption": outcome.text or None,
                "error": outcome.problem or None,
                **self.labels,
                "frames": frames,
                "input_tokens": outcome.input_tokens,
                "output_tokens": outcome.output_tokens,
                "cut": outcome.cut,
                "origin": request.origin or None,
            }
        )
        self.tally.add(request, outcome)
        self.bar.update()
        most = max(8, self.captioner.at_once)
        if self.tally.in_a_row >= most:
            raise ValueError(f"{most} requests in a row failed, the last one: {outcome.problem}")

    async def _clock(self) -> None:
        while True:
            self._show()
            await asyncio.sleep(0.5)

    def _show(self) -> None:
        left = f"{self.tally.there} there before, " if self.tally.there else ""
        self.bar.set_postfix_str(f"{left}{len(self.tally.failures)} failed, {self.tally.cost}")
