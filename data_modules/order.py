"""One order of examples for all ranks and workers, resumed exactly.

``datasets`` loses the content of its shuffle buffer when a stream is resumed (5.2), and a split by shards
gives ranks unequal epochs. So every process walks the same seeded order of undecoded examples, which is
cheap, and decodes only the batches that are its own. A position in that order is the whole state: it is the
same on every rank and in every worker, and holds for any number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from data_modules.sources import Source
from lit_msrl.types import PreferenceExample

State = dict[str, Any]
Prepare = Callable[[PreferenceExample], PreferenceExample | None]


class Order(Protocol):
    """An iterator over an epoch's examples whose position can be saved."""

    def __iter__(self) -> Iterator[PreferenceExample]: ...
    def __next__(self) -> PreferenceExample: ...

    def state_dict(self) -> State:
        """The position: what comes next."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Go to a position."""
        ...

    def next_epoch(self, state: State) -> State:
        """The position at which the epoch after the one of ``state`` begins."""
        ...


class ShuffledSource:
    """A source's examples, shuffled block by block: where a block starts decides what it holds.

    Args:
        source: What is read.
        block: Examples shuffled together; 0 keeps the source's order. Larger mixes better, in more memory.
        seed: Seed of the order; each epoch has its own.
        prepare: Applied to each example: checks it, and leaves it out by giving ``None``; must be cheap.
        cycle: Begin the next epoch instead of ending.
    """

    def __init__(
        self,
        source: Source,
        *,
        block: int,
        seed: int = 0,
        prepare: Prepare | None = None,
        cycle: bool = False,
    ) -> None:
        self.source, self.size, self.seed, self.prepare, self.cycle = source, block, seed, prepare, cycle
        self.load_state_dict({"epoch": 0, "block": 0, "source": None, "position": 0})

    def __iter__(self) -> Iterator[PreferenceExample]:
        return self

    def __next__(self) -> PreferenceExample:
        while self._position >= len(self._examples):
            if not self._fill():
                raise StopIteration
        self._position += 1
        return self._examples[self._position - 1]

    def state_dict(self) -> State:
        """The position: the source's own state where the block starts, and how far into the block."""
        return {"epoch": self._epoch, "block": self._block, "source": self._start, "position": self._position}

    def load_state_dict(self, state: State) -> None:
        """Go to a position; the block is read again when its examples are asked for."""
        self._epoch, self._block, self._position = state["epoch"], state["block"], state["position"]
        self._start: State | None = state["source"]
        self._dataset: Any = None
        self._examples: list[PreferenceExample] = []

    def next_epoch(self, state: State) -> State:
        """The start of the next epoch."""
        return {"epoch": state["epoch"] + 1, "block": 0, "source": None, "position": 0}

    def _fill(self) -> bool:
        """Read the next block; whether there is one."""
        if self._dataset is not None:
            self._start, self._block, self._position = self._dataset.state_dict(), self._block + 1, 0
        self._read_block()
        if not self._examples and self.cycle:
            if not self._block:
                raise ValueError(f"{self.source.describe()}: holds no examples")
            self.load_state_dict(self.next_epoch(self.state_dict()))
            self._read_block()
        return bool(self._examples)

    def _read_block(self) -> None:
        if self._dataset is None:
            self._dataset = self.source.dataset()
            if self._start is not None:
                self._dataset.load_state_dict(self._start)
            # not iter(dataset): in a loader's worker that would leave out other workers' shards
            self._batches = self._dataset.iter(batch_size=self.size or 64)
        read: list[PreferenceExample] = []
        for batch in self._batches:  # more than one if all of it is left out
            read = [kept for each in batch["example"] if (kept := self._prepared(each)) is not None]
            if read:
                break
        if self.size:
            rng = np.random.default_rng((self.seed, self._epoch, self._block))
            read = [read[i] for i in rng.permutation(len(read))]
        self._examples = read

    def _prepared(self, example: PreferenceExample) -> PreferenceExample | None:
        return example if self.prepare is None else self.prepare(example)
