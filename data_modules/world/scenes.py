"""Scenes: things of verifiable colour, shape, number, size, place and motion, and what is true of them."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace
from typing import Literal

Split = Literal["train", "validation", "test"]
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")
SHAPES = ("circle", "triangle", "cross", "ring", "bar")
SIZES = ("small", "large")
COUNTS = ("one", "two", "three")
PLACES = ("top left", "top right", "bottom left", "bottom right")
MOTIONS = ("staying", "moving left", "moving right", "moving up", "moving down")
VALUES = {
    "color": COLORS,
    "size": SIZES,
    "count": COUNTS,
    "place": PLACES,
    "motion": MOTIONS,
    "shape": SHAPES,
}


@dataclass(frozen=True)
class Thing:
    """One group of equal shapes in one quarter of the picture; ``motion`` is empty in pictures."""

    count: str
    size: str
    color: str
    shape: str
    place: str
    motion: str = ""

    @property
    def noun(self) -> str:
        """The shape, in the plural where there are several."""
        plural = {"cross": "crosses"}.get(self.shape, self.shape + "s")
        return self.shape if self.count == "one" else plural

    def phrase(self) -> str:
        """All that is true of it, noun first."""
        if self.motion:
            return f"{self.noun} {self.color} {self.place} {self.motion}"
        return f"{self.noun} {self.count} {self.size} {self.color} {self.place}"

    def claim(self, attribute: str) -> str:
        """The shortest phrase that states one attribute, noun first: ``circle red``, ``circle top left``.

        Which shape it is, is said of its colour.
        """
        return f"{self.noun} {self.color if attribute == 'shape' else getattr(self, attribute)}"


@dataclass(frozen=True)
class Scene:
    """Things in reading order of their places; a clip if they have motions."""

    things: tuple[Thing, ...]

    @property
    def is_video(self) -> bool:
        """Whether it is a clip."""
        return bool(self.things[0].motion)

    def caption(self) -> str:
        """A faithful description."""
        return ", ".join(thing.phrase() for thing in self.things) + "."

    def split(self) -> Split:
        """The only split this scene may occur in, decided by a hash of its caption."""
        return split_of(self.caption())

    def attributes(self) -> tuple[str, ...]:
        """What can be asked about, and altered, in it; for a clip motion twice as often."""
        if self.is_video:
            return ("color", "shape", "place", "motion", "motion")
        return ("color", "shape", "count", "size", "place")


def split_of(text: str) -> Split:
    """80 % train, 10 % validation, 10 % test, by a hash of the text."""
    bucket = hashlib.blake2b(text.encode(), digest_size=4).digest()[0] % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def sample_scene(rng: random.Random, *, video: bool, split: Split, things: int = 2) -> Scene:
    """Draw a scene of the split; its shapes, colours and places differ from thing to thing."""
    while True:
        shapes, colors = rng.sample(SHAPES, things), rng.sample(COLORS, things)
        places = sorted(rng.sample(PLACES, things), key=PLACES.index)
        scene = Scene(
            tuple(
                Thing(
                    count="one" if video else rng.choice(COUNTS),
                    size="large" if video else rng.choice(SIZES),
                    color=color,
                    shape=shape,
                    place=place,
                    motion=rng.choice(MOTIONS) if video else "",
                )
                for shape, color, place in zip(shapes, colors, places, strict=True)
            )
        )
        if scene.split() == split and (not video or any(t.motion != "staying" for t in scene.things)):
            return scene


def alter(rng: random.Random, scene: Scene, attribute: str, *, hard: bool) -> tuple[Scene, Thing, Thing]:
    """A scene that differs in one attribute, and the thing that tells them apart, as it was and as it is.

    Hard alterations swap the values of two things (nothing new appears: only binding tells them apart);
    easy ones bring in a value that the scene does not have.
    """
    index = rng.randrange(len(scene.things))
    things = list(scene.things)
    own = [getattr(thing, attribute) for thing in things]
    others = [i for i, value in enumerate(own) if value != own[index]]
    if hard and others:
        other = rng.choice(others)
        things[index] = replace(things[index], **{attribute: own[other]})
        things[other] = replace(things[other], **{attribute: own[index]})
    else:
        new = [v for v in VALUES[attribute] if v not in own] or [
            v for v in VALUES[attribute] if v != own[index]
        ]
        things[index] = replace(things[index], **{attribute: rng.choice(new)})
    altered = things[index]
    if attribute == "place":
        things.sort(key=lambda thing: PLACES.index(thing.place))
    return Scene(tuple(things)), scene.things[index], altered
