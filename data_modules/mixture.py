"""Several sources as one, with so many examples of each: how a training recipe is written down."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from data_modules.sources import Refused, Source, Stream
from lit_msrl.types import PreferenceExample

_log = logging.getLogger(__name__)


class Mixture(Source):
    """Given numbers of examples of several sources.

    An example's id gets the number of its source in front (``0:17``), so that ids are not shared.

    Args:
        sources: The sources.
        counts: How many examples of each, counted after ties and the like are left out. A source that has
            fewer gives what it has, which is logged.
        interleave: Take from all sources in proportion to ``counts``, so that every stretch holds the same
            mixture; else one source after the other.
    """

    def __init__(self, sources: list[Source], counts: list[int], *, interleave: bool = True) -> None:
        if not sources or len(sources) != len(counts) or min(counts) < 1:
            raise ValueError(f"counts {counts} of {len(sources)} sources: each needs one, of at least 1")
        self.sources, self.counts, self.interleave = sources, counts, interleave

    def check(self) -> None:
        """Each source could be opened."""
        for source in self.sources:
            source.check()

    def describe(self) -> str:
        """The sources and their counts."""
        joined = " + " if self.interleave else ", then "
        pairs = zip(self.sources, self.counts, strict=True)
        return joined.join(f"{count} of {source.describe()}" for source, count in pairs)

    def dataset(self) -> MixedStream:
        """A fresh stream."""
        return MixedStream(self)

    def examples(self, refused: Refused | None = None) -> Iterator[PreferenceExample]:
        """One example after another; ``refused`` is told of rows that do not fit."""
        streams = [source.examples(refused) for source in self.sources]
        taken = [0] * len(streams)
        ended = [False] * len(streams)
        while (turn := self.turn(taken, ended)) is not None:
            example = next(streams[turn], None)
            if example is None:
                ended[turn] = True
                continue
            taken[turn] += 1
            yield renamed(example, turn)

    def counted(self) -> Counter[str]:
        """Of all sources together."""
        return sum((source.counted() for source in self.sources), Counter())

    def turn(self, taken: list[int], ended: list[bool]) -> int | None:
        """The source whose turn it is: the first that is not done, or the one most behind its share."""
        open_ones = [i for i, count in enumerate(self.counts) if taken[i] < count and not ended[i]]
        if not open_ones:
            return None
        if not self.interleave:
            return open_ones[0]
        return min(open_ones, key=lambda i: (taken[i] + 0.5) / self.counts[i])


class MixedStream:
    """The stream of a mixture; its position is that of each source."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        self._streams: list[Stream] = [source.dataset() for source in mixture.sources]
        self._taken = [0] * len(self._streams)
        self._ended = [False] * len(self._streams)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        streams = [stream.iter(batch_size=1) for stream in self._streams]
        while (turn := self.mixture.turn(self._taken, self._ended)) is not None:
            row = next(streams[turn], None)
            if row is None:
                self._ended[turn] = True
                wanted, source = self.mixture.counts[turn], self.mixture.sources[turn].describe()
                _log.warning("%s: has %d examples, not the %d asked for", source, self._taken[turn], wanted)
                continue
            self._taken[turn] += 1
            yield {"example": renamed(row["example"][0], turn)}

    def iter(self, batch_size: int) -> Iterator[dict[str, list[Any]]]:
        """Several rows at once."""
        batch: list[PreferenceExample] = []
        for row in self:
            batch.append(row["example"])
            if len(batch) == batch_size:
                yield {"example": batch}
                batch = []
        if batch:
            yield {"example": batch}

    def state_dict(self) -> dict[str, Any]:
        """The position of each source, and how much was taken of it."""
        states = [stream.state_dict() for stream in self._streams]
        return {"streams": states, "taken": list(self._taken), "ended": list(self._ended)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to a position."""
        for stream, state in zip(self._streams, state_dict["streams"], strict=True):
            stream.load_state_dict(state)
        self._taken, self._ended = list(state_dict["taken"]), list(state_dict["ended"])


def renamed(example: PreferenceExample, number: int) -> PreferenceExample:
    """The example with the number of its source in its id."""
    return replace(example, id=f"{number}:{example.id}")
