"""Live experience replay (paper, stage 2): the old task stays in every batch.

A mixture by a fixed turn, ``new`` examples and then ``old``, over and over: any batch whose size is a
multiple of the turn holds exactly the ratio, on every rank, in every worker and after a resume. The new
examples set the length of an epoch; the old go on from epoch to epoch and begin again when they are used up.
"""

from __future__ import annotations

from collections.abc import Iterator

from data_modules.order import Order, State
from lit_msrl.types import PreferenceExample


class Replay:
    """Two orders, taken in turn.

    Args:
        new: What is learned now.
        old: What is replayed; must not end (``cycle``).
        ratio: How many of each make a turn.
    """

    def __init__(self, new: Order, old: Order, ratio: tuple[int, int]) -> None:
        self.new, self.old, self.ratio = new, old, ratio
        self._turn = 0

    def __iter__(self) -> Iterator[PreferenceExample]:
        return self

    def __next__(self) -> PreferenceExample:
        example = next(self.new if self._turn < self.ratio[0] else self.old)
        self._turn = (self._turn + 1) % sum(self.ratio)
        return example

    def state_dict(self) -> State:
        """The two positions and the turn."""
        return {"new": self.new.state_dict(), "old": self.old.state_dict(), "turn": self._turn}

    def load_state_dict(self, state: State) -> None:
        """Go to a position."""
        self.new.load_state_dict(state["new"])
        self.old.load_state_dict(state["old"])
        self._turn = state["turn"]

    def next_epoch(self, state: State) -> State:
        """New examples from their start, old ones where they were."""
        return {"new": self.new.next_epoch(state["new"]), "old": state["old"], "turn": 0}


def check_ratio(ratio: tuple[int, int], batch_size: int) -> None:
    """Refuse a ratio that a batch cannot hold exactly.

    Raises:
        ValueError: The batch size is no multiple of new + old, or a part is not positive.
    """
    if min(ratio) < 1:
        raise ValueError(f"replay_ratio is {ratio[0]}:{ratio[1]}; both parts must be at least 1")
    if batch_size % sum(ratio):
        raise ValueError(
            f"batch_size {batch_size} cannot hold new and old examples at {ratio[0]}:{ratio[1]};"
            f" make it a multiple of {sum(ratio)} or change replay_ratio"
        )
