"""Preference data for the trainer: sources in, batches of examples out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch import LightningDataModule
from torchdata.stateful_dataloader import StatefulDataLoader

from data_modules.cache import MediaCache
from data_modules.captions import Captions
from data_modules.media import Decoder
from data_modules.order import Order, ShuffledSource, State
from data_modules.sources import Source
from data_modules.stream import Batch, BatchStream, Budget, Gate, ResumableLoader
from data_modules.urls import Urls
from lit_msrl.types import PreferenceExample


class PreferenceDataModule(LightningDataModule):
    """Streams preference examples; a batch is a collection of them with decoded media.

    Training goes on where a checkpoint left off, to the batch, on any number of ranks and workers.
    The order is the same for any number of workers, and global batches are the same for any number of ranks
    at the same ``batch_size`` x ranks.

    Args:
        train: What is trained on.
        validation: What is validated on; in the source's order, ties as the source keeps them.
        batch_size: Prompts of one step on each rank; the step of all ranks takes ``batch_size`` x ranks.
        num_workers: Processes that read and decode.
        shuffle_buffer: Examples shuffled together; 0 keeps the source's order.
        seed: Seed of the training order.
        num_frames: Frames taken from a clip, uniformly.
        max_pixels: Pictures and frames are shrunk to at most this many pixels.
        max_seconds: Longer clips are refused.
        urls: Hosts from which media may be read; by default none.
        cache: Where decoded frames are kept from epoch to epoch; by default nowhere.
        captions: Files of ``experiments/caption.py``, joined by the media's content to examples that have no
            captions; an example that finds none is left out and counted.
    """

    def __init__(
        self,
        train: Source | None = None,
        validation: Source | None = None,
        *,
        batch_size: int = 8,
        num_workers: int = 0,
        shuffle_buffer: int = 1000,
        seed: int = 0,
        num_frames: int = 3,
        max_pixels: int = 1024 * 1024,
        max_seconds: float = 600.0,
        urls: Urls | None = None,
        cache: MediaCache | None = None,
        captions: list[str] | str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        for source in (train, validation):
            if source is not None:
                source.check()
        self.train, self.validation = train, validation
        self.batch_size, self.num_workers = batch_size, num_workers
        self.shuffle_buffer, self.seed = shuffle_buffer, seed
        self.decoder = Decoder(num_frames, max_pixels, max_seconds=max_seconds, urls=urls, cache=cache)
        self.captions = Captions(captions, urls) if captions else None
        self.budget: Budget | None = None
        self._loader: ResumableLoader | None = None
        self._resume: State | None = None

    @staticmethod
    def check(example: PreferenceExample) -> PreferenceExample:
        """What this stream accepts, and what of it; subclasses raise ``ValueError`` for the rest."""
        return example

    def train_order(self, gate: Gate) -> Callable[[], Order]:
        """A function that opens the order of training examples (a subclass may mix sources)."""
        source, prepare = self._require(self.train, "train"), partial(gate.admit, self.check)
        return partial(ShuffledSource, source, block=self.shuffle_buffer, seed=self.seed, prepare=prepare)

    def sources(self) -> list[Source]:
        """All that is trained on."""
        return [self._require(self.train, "train")]

    def describe(self) -> str:
        """What is trained on; a checkpoint can be resumed only on the same."""
        joined = f", {self.captions.describe()}" if self.captions else ""
        return self._require(self.train, "train").describe() + joined

    def setup(self, stage: str) -> None:
        """A new run begins at the start; a checkpoint's position is restored after this."""
        if stage == "fit":
            self._loader = self._resume = None

    def train_dataloader(self) -> ResumableLoader:
        """Full batches, shuffled; goes on from a checkpoint."""
        gate = Gate(self.budget, self.captions, self.sources())
        stream = self._stream(self.train_order(gate), gate, drop_last=True)
        self._loader = ResumableLoader(stream, num_workers=self.num_workers, confirm=self.trainer is not None)
        if self._resume is not None:
            self._loader.load_state_dict(self._checked(self._resume))
        return self._loader

    def val_dataloader(self) -> StatefulDataLoader | list[Any]:
        """All examples in the source's order; the last batch may be smaller. Empty without ``validation``."""
        if self.validation is None:
            return []
        gate = Gate(self.budget, self.captions, [self.validation])
        order = partial(ShuffledSource, self.validation, block=0, prepare=partial(gate.admit, self.check))
        stream = self._stream(order, gate, drop_last=False)
        return StatefulDataLoader(stream, batch_size=None, num_workers=self.num_workers)

    def distillation_batches(self) -> StatefulDataLoader:
        """Every training example of this rank once, media not decoded: what CMKD judges from captions."""
        gate = Gate(self.budget, self.captions)
        source, prepare = self._require(self.train, "train"), partial(gate.admit, self.check)
        order = partial(ShuffledSource, source, block=0, prepare=prepare)
        stream = self._stream(order, gate, drop_last=False, decode=_as_is)
        return StatefulDataLoader(stream, batch_size=None, num_workers=self.num_workers)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Note which training batch is used: Lightning has fetched further than it has trained."""
        if self._loader is not None and isinstance(batch, Batch) and self.trainer and self.trainer.training:
            self._loader.used(batch)
        return batch

    def state_dict(self) -> State:
        """The position in the training stream; Lightning omits the loader's at the end of an epoch."""
        if self._loader is None:
            return {}
        return {"data": self.describe(), "loader": self._loader.state_dict()}

    def load_state_dict(self, state_dict: State) -> None:
        """Go on from a checkpoint."""
        self._resume = state_dict or None

    def _checked(self, state: State) -> State:
        if state["data"] != self.describe():
            raise ValueError(
                f"the checkpoint stopped in {state['data']!r}, but the data are {self.describe()!r};"
                " resume with the same data, or start from the checkpoint's weights only"
            )
        return state["loader"]

    def _stream(
        self,
        order: Callable[[], Order],
        gate: Gate,
        *,
        drop_last: bool,
        decode: Callable[..., Any] | None = None,
    ) -> BatchStream:
        replicas = (self.trainer.distributed_sampler_kwargs if self.trainer else None) or {}
        return BatchStream(
            order,
            batch_size=self.batch_size,
            decode=decode or self.decoder.example,
            gate=gate,
            fit=decode is None,
            rank=replicas.get("rank", 0),
            world_size=replicas.get("num_replicas", 1),
            drop_last=drop_last,
        )

    @staticmethod
    def _require(source: Source | None, name: str) -> Source:
        if source is None:
            raise ValueError(f"--data.{name} is not set")
        return source


def _as_is(example: PreferenceExample) -> PreferenceExample:
    return example
