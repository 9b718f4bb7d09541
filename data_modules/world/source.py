"""The drawn world as a source of preferences: seeded, unlimited, all five task types."""

from __future__ import annotations

from collections.abc import Iterator

import datasets

from data_modules.sources import Source
from data_modules.world.preferences import Annotators, make_example
from data_modules.world.scenes import Split
from lit_msrl.types import TASK_TYPES, PreferenceExample, TaskType


class World(Source):
    """Preferences about drawn scenes and made-up facts; the embedded default.

    Args:
        tasks: Task types, taken in turn; by default the four multimodal ones.
        size: Number of examples.
        split: Scenes and facts are divided by a hash; what is in ``test`` never occurs in ``train``.
        annotators: ``careful`` ones never err; ``hasty`` ones are swayed by length, confident wording and
            position.
        hard_share: Share of pairs that only binding tells apart (two things swapped); in the others
            something is new.
        seed: Seed of the stream.
    """

    def __init__(
        self,
        tasks: list[TaskType] | None = None,
        *,
        size: int = 100_000,
        split: Split = "train",
        annotators: Annotators = "careful",
        hard_share: float = 0.5,
        seed: int = 0,
    ) -> None:
        self.tasks: list[TaskType] = tasks or list(TASK_TYPES[1:])
        unknown = set(self.tasks) - set(TASK_TYPES)
        if unknown:
            raise ValueError(f"unknown task types {sorted(unknown)}; use {', '.join(TASK_TYPES)}")
        self.size, self.seed, self.hard_share = size, seed, hard_share
        self.split: Split = split
        self.annotators: Annotators = annotators

    def example(self, index: int) -> PreferenceExample:
        """The ``index``-th example."""
        task = self.tasks[index % len(self.tasks)]
        return make_example(
            task,
            index,
            seed=self.seed,
            split=self.split,
            annotators=self.annotators,
            hard_share=self.hard_share,
        )

    def dataset(self) -> datasets.IterableDataset:
        """A fresh stream of ``{"example": PreferenceExample}``."""
        return datasets.IterableDataset.from_generator(self._stream)  # type: ignore[return-value]

    def describe(self) -> str:
        """Everything that decides what is streamed."""
        return (
            f"World({', '.join(self.tasks)}; {self.size} x {self.split}, {self.annotators}, "
            f"hard {self.hard_share}, seed {self.seed})"
        )

    def _stream(self) -> Iterator[dict[str, PreferenceExample]]:
        return ({"example": self.example(index)} for index in range(self.size))
