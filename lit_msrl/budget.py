"""The media budget: the tokens of an example, counted exactly before anything runs, and how it is fitted.

An example that is too long gets smaller pictures (fewer tiles), then fewer frames of its clips; one that is
too long even so is left out and counted. Text is never cut, and nothing is cut token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from PIL import Image

from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import Style, View, render, render_candidate
from lit_msrl.types import Media, PreferenceExample

Size = tuple[int, int]
Turn = tuple[str, Sequence[Media]]
Turns = Callable[[PreferenceExample], Iterable[Turn]]
LEAST_PIXELS = 256 * 256  # smaller pictures are not worth judging
_BLANK = Image.new("RGB", (1, 1))


def judging_turns(views: Sequence[View], style: Style) -> Turns:
    """What a judge reads of an example: in each view that it has evidence for, in both orders."""

    def turns(example: PreferenceExample) -> Iterator[Turn]:
        seen: list[View] = [v for v in views if (example.media if v == "visual" else example.captions)]
        if example.task_type == "text":
            seen = ["caption"]
        for view in seen:
            for swapped in (False, True):
                prompt = render(example, view=view, style=style, swapped=swapped)
                yield prompt.text, prompt.media

    return turns


def candidate_turns(view: View) -> Turns:
    """What a discriminative reward model reads: one candidate at a time."""
    return lambda example: (render_candidate(example, candidate, view=view) for candidate in (1, 2))


class Budget:
    """What a policy reads of an example.

    Args:
        policy: Whose tokenizer and pictures count.
        turns: What it is shown of an example; the longest counts.
        limit: Most tokens of a prompt.
    """

    def __init__(self, policy: GenerativeRMPolicy, turns: Turns, limit: int) -> None:
        self.policy, self.turns, self.limit = policy, turns, limit

    def tokens(self, example: PreferenceExample, sizes: Sequence[Sequence[Size]]) -> int:
        """Tokens of the longest prompt.

        Args:
            example: Its media need not be decoded.
            sizes: For each medium the sizes of its frames.
        """
        return max((self._count(text) + added for text, added in self._texts(example, sizes)), default=0)

    def fits(self, example: PreferenceExample, sizes: Sequence[Sequence[Size]]) -> bool:
        """Whether the longest prompt is within the limit. Bytes are looked at first: no token is shorter."""
        return all(
            len(text.encode()) + pictures <= self.limit or self._count(text) + pictures <= self.limit
            for text, pictures in self._texts(example, sizes)
        )

    def admits(self, example: PreferenceExample) -> bool:
        """Whether it fits with the least media: one frame per clip, of ``LEAST_PIXELS`` like each picture."""
        side = int(LEAST_PIXELS**0.5)
        return self.fits(example, [[(side, side)]] * len(example.media))

    def fit(self, example: PreferenceExample) -> PreferenceExample:
        """The example with as much of its decoded media as fits; itself, if all does."""
        sizes = [[frame.size for frame in medium.frames] for medium in example.media]
        for pixels, frames in _ladder(sizes):
            wanted = [[_shrunk(size, pixels) for size in _spread(own, frames)] for own in sizes]
            if self.fits(example, wanted):
                return example if wanted == sizes else _apply(example, wanted)
        return example  # a picture of extreme shape; the policy will name it

    def _texts(
        self, example: PreferenceExample, sizes: Sequence[Sequence[Size]]
    ) -> Iterator[tuple[str, int]]:
        """Of each turn the chat text, and the tokens its pictures add to it."""
        blank = tuple(
            Media(medium.kind, (_BLANK,) * len(own)) for medium, own in zip(example.media, sizes, strict=True)
        )
        added = {
            id(medium): sum(self.policy.backbone.picture_tokens(*size) - 1 for size in own)
            for medium, own in zip(blank, sizes, strict=True)
        }
        for text, media in self.turns(replace(example, media=blank)):
            yield self.policy.chat(text, media), sum(added[id(medium)] for medium in media)

    def _count(self, text: str) -> int:
        ids = self.policy.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return len(ids)


def _ladder(sizes: Sequence[Sequence[Size]]) -> Iterator[tuple[int, int]]:
    """Ever less media: pixels per frame, halved down to the least, then frames per clip, one by one."""
    pixels = max((width * height for own in sizes for width, height in own), default=0)
    frames = max((len(own) for own in sizes), default=0)
    yield pixels, frames
    while pixels > LEAST_PIXELS:
        pixels = max(pixels // 2, LEAST_PIXELS)
        yield pixels, frames
    for fewer in range(frames - 1, 0, -1):
        yield pixels, fewer


def _spread(own: Sequence[Size], frames: int) -> list[Size]:
    return [own[i] for i in _indices(len(own), frames)]


def _indices(total: int, count: int) -> list[int]:
    """``count`` of ``total``, evenly: the middles of equal stretches."""
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def _shrunk(size: Size, pixels: int) -> Size:
    excess = size[0] * size[1] / max(pixels, 1)
    return size if excess <= 1 else (max(1, int(size[0] / excess**0.5)), max(1, int(size[1] / excess**0.5)))


def _apply(example: PreferenceExample, wanted: list[list[Size]]) -> PreferenceExample:
    media = []
    for medium, sizes in zip(example.media, wanted, strict=True):
        kept = [medium.frames[i] for i in _indices(len(medium.frames), len(sizes))]
        frames = tuple(
            frame if frame.size == size else frame.resize(size, Image.Resampling.BICUBIC)
            for frame, size in zip(kept, sizes, strict=True)
        )
        media.append(replace(medium, source=frames))
    return replace(example, media=tuple(media))
