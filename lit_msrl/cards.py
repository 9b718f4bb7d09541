"""A judgement to look at: what the judge was shown and wrote, with pictures as data of a page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import zip_longest
from typing import Any

import numpy as np
from PIL import Image

from lit_msrl.prompts import JudgingPrompt, parse
from lit_msrl.types import Media

_PIXEL_ART = 128  # pictures up to this size are shown enlarged, their pixels kept square
_LARGEST_SIDE, _LONGEST_STRIP = 512, 8


@dataclass(frozen=True)
class JudgementCard:
    """A judgement to look at.

    Attributes:
        prompt: What the judge was shown, its media decoded.
        text: What it wrote.
        correct: Whether it chose the better candidate.
        rewards: What the completion earned, by reward.
        arm: The judge.
    """

    prompt: JudgingPrompt
    text: str
    correct: bool
    rewards: Mapping[str, float]
    arm: str


def as_shown(card: JudgementCard) -> dict[str, Any]:
    """What a card shows: the evidence, the candidates as A and B, and the judgement by section."""
    prompt, example = card.prompt, card.prompt.example
    judgement = parse(card.text, prompt.tags)
    turn = (lambda pair: pair[::-1]) if prompt.swapped else (lambda pair: pair)
    captions = turn(example.captions) if example.is_generation else example.captions
    shown = [exhibit(*pair) for pair in zip_longest(prompt.media, captions)]
    candidates = [_Exhibit(words=text) for text in turn(example.candidates)] if example.candidates else shown
    return {
        "card": card, "question": example.prompt, "exhibits": [] if example.is_generation else shown,
        "candidates": dict(zip("AB", candidates, strict=True)),
        "chosen": judgement.answer, "preferred": prompt.label,
        "sections": [(tag, judgement.sections[tag]) for tag in prompt.tags] if judgement.well_formed else [],
    }  # fmt: skip


@dataclass(frozen=True)
class _Exhibit:
    """Something the judge was shown: words, a caption, a picture or a clip."""

    words: str | None = None
    caption: str | None = None
    frames: Sequence[str] = ()
    motion: str | None = None
    pixelated: bool = False


def exhibit(media: Media | None, caption: str | None) -> _Exhibit:
    """A picture or clip with its caption, or the caption alone."""
    if media is None:
        return _Exhibit(caption=caption)
    frames = [_fit(frame) for frame in media.frames]
    strip = np.linspace(0, len(frames) - 1, min(len(frames), _LONGEST_STRIP)).astype(int)
    return _Exhibit(
        caption=caption or media.kind,
        frames=[_data_uri([frames[i]], "png") for i in strip],
        motion=_data_uri(frames, "gif") if len(frames) > 1 else None,
        pixelated=max(media.frames[0].size) <= _PIXEL_ART,
    )


def _fit(frame: Image.Image) -> Image.Image:
    frame = frame.convert("RGB")
    frame.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    return frame


def _data_uri(frames: Sequence[Image.Image], kind: str) -> str:
    buffer = BytesIO()
    motion = (
        {"save_all": True, "append_images": frames[1:], "duration": 500, "loop": 0} if len(frames) > 1 else {}
    )
    frames[0].save(buffer, kind, **motion)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
