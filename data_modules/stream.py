"""Batches of an order: dealt to ranks and workers, and a loader that resumes where training was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Protocol

from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from data_modules.captions import Captions
from data_modules.order import Order, State
from data_modules.sources import Source
from lit_msrl.types import PreferenceExample

Check = Callable[[PreferenceExample], PreferenceExample]


class Batch:
    """The examples of one step on one rank.

    Not a list by intent: Lightning searches lists for tensors and would enter (and refuse) the examples.

    Attributes:
        examples: The examples, media decoded.
        state: The position in the stream after this batch.
        dropped: Examples left out since the loader began, because they cannot be made short enough.
        uncaptioned: Examples left out since then, because there is no caption of their media.
        held_out: Rows left out since then, because a benchmark tests on them.
        shrunk: Examples of this batch that show less of their media than there is.
    """

    def __init__(
        self,
        examples: list[PreferenceExample],
        state: State,
        *,
        dropped: int = 0,
        uncaptioned: int = 0,
        held_out: int = 0,
        shrunk: int = 0,
    ) -> None:
        self.examples, self.state, self.shrunk = examples, state, shrunk
        self.dropped, self.uncaptioned, self.held_out = dropped, uncaptioned, held_out

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[PreferenceExample]:
        return iter(self.examples)

    def __getitem__(self, index: int) -> PreferenceExample:
        return self.examples[index]


class Budget(Protocol):
    """How much of an example the model can read; the stage sets it."""

    def admits(self, example: PreferenceExample) -> bool:
        """Whether it can be made short enough; media are not decoded for it."""
        ...

    def fit(self, example: PreferenceExample) -> PreferenceExample:
        """The example, media decoded, with as much of them as fits."""
        ...


class Gate:
    """What of a source passes into a stream: what is captioned, fits the data module and fits the budget.

    Args:
        budget: Without one everything is short enough.
        captions: Joined to examples that have media and no captions; what finds none does not pass.
        sources: What is streamed, asked for what they left out themselves.
    """

    def __init__(
        self,
        budget: Budget | None = None,
        captions: Captions | None = None,
        sources: Sequence[Source] = (),
    ) -> None:
        self.budget, self.captions, self.sources = budget, captions, sources
        self.begin()

    def begin(self) -> None:
        """Count anew what does not pass."""
        self.dropped = self.uncaptioned = 0
        self._first: dict[str, str] = {}

    @property
    def held_out(self) -> int:
        """Rows the sources left out because a benchmark tests on them."""
        return sum(source.counted()["held_out"] for source in self.sources)

    def admit(self, check: Check, example: PreferenceExample) -> PreferenceExample | None:
        """The example as the data module takes it; ``None`` if it does not pass."""
        joined = example if self.captions is None else self.captions.join(example)
        if joined is None:
            self._first.setdefault("uncaptioned", f"example {example.id!r} of {example.source!r}")
            self.uncaptioned += 1
            return None
        example = check(joined)
        if self.budget is None or self.budget.admits(example):
            return example
        self._first.setdefault("dropped", f"example {example.id!r} of {example.source!r}")
        self.dropped += 1
        return None

    def explain(self) -> str:
        """What did not pass, as the end of a sentence; empty if everything did."""
        said = ""
        if self.dropped:
            said += (
                f"; {self.dropped} were left out, whose prompts are too long with the least media,"
                f" {self._first['dropped']} first (raise model.policy.max_length, which holds prompt and"
                " completion)"
            )
        if self.uncaptioned:
            files = ", ".join(self.captions.files) if self.captions else ""
            said += (
                f"; {self.uncaptioned} were left out, whose media have no caption in {files},"
                f" {self._first['uncaptioned']} first (run experiments/caption.py on the same data)"
            )
        return said

    def fit(self, example: PreferenceExample) -> PreferenceExample:
        """A decoded example within the budget."""
        return example if self.budget is None else self.budget.fit(example)


class BatchStream(IterableDataset[Batch]):
    """Deals an order into batches: the r-th part of a global batch to rank r, every W-th batch to a worker.

    Every rank gets equally many batches. With ``drop_last`` all are full; without, the last ones share
    equally what is left (fewer than ``world_size`` examples may stay behind).

    Args:
        order: A function that opens the order.
        batch_size: Examples of one batch, on one rank.
        decode: Applied to the examples of this rank and worker only (media); they are then fitted.
        gate: What the order was opened with.
        fit: Fit decoded examples into the gate's budget.
        rank: This rank.
        world_size: Ranks that see different data.
        drop_last: Leave out what does not fill a batch on every rank.
    """

    def __init__(
        self,
        order: Callable[[], Order],
        *,
        batch_size: int,
        decode: Check,
        gate: Gate | None = None,
        fit: bool = True,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
    ) -> None:
        self.order, self.decode, self.drop_last = order, decode, drop_last
        self.gate, self.fit = gate or Gate(), fit
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.start: State | None = None

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        self.gate.begin()
        for number, (share, state) in enumerate(self._shares()):
            if number % workers == worker:
                yield self._batch(share, state)

    def _batch(self, share: list[PreferenceExample], state: State) -> Batch:
        decoded = [self.decode(example) for example in share]
        fitted = [self.gate.fit(example) for example in decoded] if self.fit else decoded
        shrunk = sum(before is not after for before, after in zip(decoded, fitted, strict=True))
        dropped, uncaptioned, held_out = self.gate.dropped, self.gate.uncaptioned, self.gate.held_out
        return Batch(
            fitted, state, dropped=dropped, uncaptioned=uncaptioned, held_out=held_out, shrunk=shrunk
        )

    def _shares(self) -> Iterator[tuple[list[PreferenceExample], State]]:
        """This rank's part of each global batch, and the position after it.

        The next global batch is read before one is handed out: the last one points to the next epoch.
        """
        order = self.order()
        if self.start is not None:
            order.load_state_dict(self.start)
        share = self._take(order)
        if not share and self.start is None and (self.drop_last or self.gate.explain()):
            kind = "training" if self.drop_last or not self.fit else "validation"
            raise ValueError(
                f"the {kind} data hold fewer examples than one step"
                f" takes: batch_size {self.batch_size} x {self.world_size} ranks{self.gate.explain()}"
            )
        while share:
            state = order.state_dict()
            following = self._take(order)
            yield share, state if following else order.next_epoch(state)
            share = following

    def _take(self, order: Order) -> list[PreferenceExample]:
        total = list(islice(order, self.batch_size * self.world_size))
        if self.drop_last and len(total) < self.batch_size * self.world_size:
            return []
        size = len(total) // self.world_size
        return total[self.rank * size : (self.rank + 1) * size]


class ResumableLoader(StatefulDataLoader):
    """A loader that goes on where it was: ``iter`` continues after the last batch used, epoch after epoch.

    torchdata's own state is one per worker and counts what was fetched; Lightning fetches one batch more than
    it trains on when the length is unknown. The state here is that of the last batch *used*.

    Args:
        stream: The batches.
        num_workers: Processes that read and decode.
        confirm: A batch counts as used when ``used`` is called (by the data module, when training takes it)
            and not already when it is handed out.
    """

    def __init__(self, stream: BatchStream, *, num_workers: int = 0, confirm: bool = False) -> None:
        super().__init__(stream, batch_size=None, num_workers=num_workers, snapshot_every_n_steps=None)
        self.stream, self.confirm = stream, confirm

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if not self.confirm:
                self.used(batch)
            yield batch

    def used(self, batch: Batch) -> None:
        """Take note that a batch was used."""
        self.stream.start = batch.state

    def state_dict(self) -> State:
        """The position after the last batch used: the same on all ranks, for any number of workers."""
        return {"position": self.stream.start}

    def load_state_dict(self, state_dict: State) -> None:
        """Go to a position."""
        self.stream.start = state_dict["position"]
