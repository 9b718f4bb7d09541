"""Stage 2: preferences judged from captions, with replay of stage 1's text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from data_modules.base import PreferenceDataModule
from data_modules.order import Order, ShuffledSource
from data_modules.replay import Replay, check_ratio
from data_modules.sources import Source
from data_modules.stream import Gate
from data_modules.text import TextPreferenceDataModule
from data_modules.urls import Urls
from lit_msrl.types import PreferenceExample


class CaptionPreferenceDataModule(PreferenceDataModule):
    """Streams captioned preferences without their media; every training batch also holds replayed text.

    Args:
        train: Captioned preferences.
        validation: What is validated on: captioned preferences (no replay).
        replay: Text preferences of stage 1; without it nothing is replayed.
        replay_ratio: Captioned to replayed examples in every batch, exactly; ``batch_size`` must be a
            multiple of their sum.
        batch_size: Prompts of one step on each rank, replayed ones included.
        num_workers: Processes that read and decode.
        shuffle_buffer: Examples shuffled together; 0 keeps the source's order.
        seed: Seed of the training order.
        captions: Files of ``experiments/caption.py``, joined by the media's content to examples that have no
            captions; an example that finds none is left out and counted.
        urls: Hosts from which media may be read to be joined; by default none.
    """

    def __init__(
        self,
        train: Source | None = None,
        validation: Source | None = None,
        *,
        replay: Source | None = None,
        replay_ratio: tuple[int, int] = (4, 1),
        batch_size: int = 10,
        num_workers: int = 0,
        shuffle_buffer: int = 1000,
        seed: int = 0,
        captions: list[str] | str | None = None,
        urls: Urls | None = None,
    ) -> None:
        super().__init__(
            train,
            validation,
            batch_size=batch_size,
            num_workers=num_workers,
            shuffle_buffer=shuffle_buffer,
            seed=seed,
            captions=captions,
            urls=urls,
        )
        if replay is not None:
            replay.check()
            check_ratio(replay_ratio, batch_size)
        self.replay, self.replay_ratio = replay, replay_ratio

    @staticmethod
    def check(example: PreferenceExample) -> PreferenceExample:
        """Accept captioned examples and leave their media behind, so that no picture is read.

        Raises:
            ValueError: The example has no captions.
        """
        if not example.captions:
            raise ValueError(
                f"example {example.id!r} of {example.source!r} ({example.task_type}) has no captions;"
                " experiments/caption.py writes some, to be named by --data.captions"
            )
        return replace(example, media=())

    def train_order(self, gate: Gate) -> Callable[[], Order]:
        """New and replayed examples in turn."""
        new = super().train_order(gate)
        if self.replay is None:
            return new
        return partial(_mix, new, self._replayed(self.replay, gate), self.replay_ratio)

    def sources(self) -> list[Source]:
        """What is trained on and what is replayed."""
        return super().sources() + ([] if self.replay is None else [self.replay])

    def describe(self) -> str:
        """What is trained on and what is replayed."""
        if self.replay is None:
            return super().describe()
        new, old = self.replay_ratio
        return f"{super().describe()} and {self.replay.describe()} at {new}:{old}"

    def _replayed(self, source: Source, gate: Gate) -> Callable[[], Order]:
        check = partial(gate.admit, TextPreferenceDataModule.check)
        return partial(
            ShuffledSource, source, block=self.shuffle_buffer, seed=self.seed, prepare=check, cycle=True
        )


def _mix(new: Callable[[], Order], old: Callable[[], Order], ratio: tuple[int, int]) -> Replay:
    return Replay(new(), old(), ratio)
