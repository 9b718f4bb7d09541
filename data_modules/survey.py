"""A look through a source before training: what it holds, and what of it would stop or spoil a run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from data_modules.media import Decoder, MediaError
from data_modules.pictures import picture_prints
from data_modules.sources import Source
from lit_msrl.prompts import shown_first
from lit_msrl.types import PreferenceExample

Size = tuple[int, int]
CountTokens = Callable[[PreferenceExample, Sequence[Sequence[Size]]], int]
Check = Callable[[PreferenceExample], PreferenceExample | None]


@dataclass
class Group:
    """Examples of one dataset and task.

    Attributes:
        examples: How many.
        winners: How often candidate 1 is better, 2, or neither.
        shown_first: How often the better one is shown as A.
        tokens: Of each prompt, as long as it is before it is fitted.
    """

    examples: int = 0
    winners: Counter[object] = field(default_factory=Counter)
    shown_first: int = 0
    tokens: list[int] = field(default_factory=list)

    @property
    def decided(self) -> int:
        """Examples that are no ties."""
        return self.examples - self.winners["tie"]

    def lopsided(self) -> bool:
        """Whether A is better so often, or so rarely, that the coin cannot have done it (5 sigma)."""
        return abs(self.shown_first - self.decided / 2) > 5 * math.sqrt(max(self.decided, 1)) / 2


@dataclass
class Survey:
    """What was found in a source.

    Attributes:
        groups: By dataset and task.
        refused: What is wrong with rows that do not fit, one line each.
        unreadable: What is wrong with media, one line each.
        uncaptioned: Examples whose media have no caption in the files of captions.
        left_out: Rows read, examples kept, ties, as the source counts them.
        ids: How often each id occurs.
        longest: The longest prompts: tokens and id.
        prompts: Id and prompt of each example.
        pictures: Id and fingerprint of each picture, if they were asked for.
        ended: Whether all of the source was looked at.
    """

    groups: dict[tuple[str, str], Group] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    uncaptioned: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    ids: Counter[str] = field(default_factory=Counter)
    longest: list[tuple[int, str]] = field(default_factory=list)
    prompts: list[tuple[str, str]] = field(default_factory=list)
    pictures: list[tuple[str, int]] = field(default_factory=list)
    ended: bool = True

    @property
    def examples(self) -> int:
        """How many examples fit."""
        return sum(group.examples for group in self.groups.values())

    @property
    def repeated_ids(self) -> int:
        """Examples whose id another has had before."""
        return self.ids.total() - len(self.ids)

    def add(self, example: PreferenceExample, tokens: int | None) -> None:
        """Count an example."""
        group = self.groups.setdefault((example.source, example.task_type), Group())
        group.examples += 1
        group.winners[example.winner] += 1
        group.shown_first += example.winner != "tie" and (example.winner == 1) != shown_first(example.id)
        self.ids[example.id] += 1
        self.prompts.append((example.id, example.prompt))
        if tokens is not None:
            group.tokens.append(tokens)
            self.longest = sorted([*self.longest, (tokens, example.id)], reverse=True)[:5]


def survey(
    source: Source,
    *,
    check: Check,
    decoder: Decoder,
    tokens: CountTokens,
    rows: int | None = None,
    pictures: bool = False,
) -> Survey:
    """Look through a source.

    Args:
        source: The source.
        check: What the data module accepts; ``None`` if there is no caption.
        decoder: Whose bounds hold for media; of these only headers are read, unless ``pictures`` says else.
        tokens: Counts an example's tokens.
        rows: Stop after so many examples.
        pictures: Decode pictures (not clips) and keep their fingerprints.
    """
    found, looked_at = Survey(), 0
    for example in islice(source.examples(found.refused.append), rows):
        looked_at += 1
        try:
            checked = check(example)
        except MediaError as error:
            found.unreadable.append(str(error))
            continue
        except ValueError as error:
            found.refused.append(str(error))
            continue
        if checked is None:
            found.uncaptioned += 1
            continue
        found.add(checked, _tokens(checked, decoder, tokens, found.unreadable))
        if pictures:
            found.pictures += picture_prints(checked, decoder, found.unreadable)
    found.ended = rows is None or looked_at < rows
    found.left_out = source.counted()
    return found


def _tokens(
    example: PreferenceExample, decoder: Decoder, count: CountTokens, unreadable: list[str]
) -> int | None:
    sizes: list[list[Size]] = []
    for media in example.media:
        try:
            sizes.append(decoder.sizes(media))
        except MediaError as error:
            unreadable.append(f"{media.origin or 'example ' + example.id}: {error}")
    return count(example, sizes) if len(sizes) == len(example.media) else None
