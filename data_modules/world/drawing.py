"""Scenes as pictures and clips, drawn with Pillow; colours, places and background vary a little, by seed."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw

from data_modules.world.scenes import PLACES, Scene, Thing

SIDE = 64  # pixels
MOMENTS = (0.0, 0.4, 1.0)  # of a clip's frames
RGB = {
    "red": (214, 40, 40), "green": (40, 160, 60), "blue": (40, 80, 220), "yellow": (245, 215, 40),
    "purple": (150, 50, 170), "orange": (245, 135, 25), "black": (15, 15, 15), "white": (250, 250, 250),
}  # fmt: skip
TRAVEL = 16  # pixels a moving thing covers in a clip
STEP = {"moving left": (-1, 0), "moving right": (1, 0), "moving up": (0, -1), "moving down": (0, 1)}
RADII = {"small": (6, 4), "large": (12, 7)}  # alone, and where there are several
OFFSETS = {1: ((0, 0),), 2: ((-8, -6), (8, 6)), 3: ((-8, -8), (8, -8), (0, 8))}


def draw(scene: Scene, seed: str) -> tuple[Image.Image, ...]:
    """The frames of a scene: one for a picture, one per moment for a clip."""
    rng = random.Random(f"draw/{seed}")
    grey = rng.randint(115, 150)
    looks = [(_jitter(rng), _tint(rng, thing.color)) for thing in scene.things]
    frames = []
    for moment in MOMENTS if scene.is_video else (0.5,):
        image = Image.new("RGB", (SIDE, SIDE), (grey, grey, grey))
        pen = ImageDraw.Draw(image)
        for thing, (jitter, color) in zip(scene.things, looks, strict=True):
            _draw_thing(pen, thing, jitter, color, moment)
        frames.append(image)
    return tuple(frames)


def _draw_thing(
    pen: ImageDraw.ImageDraw, thing: Thing, jitter: tuple[int, int], color: tuple[int, ...], moment: float
):
    quarter = PLACES.index(thing.place)
    dx, dy = STEP.get(thing.motion, (0, 0))
    x = SIDE * (1 + 2 * (quarter % 2)) / 4 + jitter[0] + dx * TRAVEL * (moment - 0.5)
    y = SIDE * (1 + 2 * (quarter // 2)) / 4 + jitter[1] + dy * TRAVEL * (moment - 0.5)
    many = 1 + ("one", "two", "three").index(thing.count)
    radius = 8 if thing.motion else RADII[thing.size][many > 1]
    for ox, oy in OFFSETS[many]:
        draw_shape(pen, thing.shape, (x + ox, y + oy), radius, color)


def draw_shape(
    pen: ImageDraw.ImageDraw, shape: str, center: tuple[float, float], radius: float, color: tuple[int, ...]
) -> None:
    """One filled shape."""
    (x, y), r = center, radius
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=color)
    elif shape == "bar":
        pen.rectangle((x - r, y - 0.35 * r, x + r, y + 0.35 * r), fill=color)
    elif shape == "ring":
        pen.ellipse((x - r, y - r, x + r, y + r), outline=color, width=max(2, round(0.4 * r)))
    elif shape == "triangle":
        angles = (-math.pi / 2 + k * 2 * math.pi / 3 for k in range(3))
        pen.polygon([(x + 1.15 * r * math.cos(a), y + 1.15 * r * math.sin(a)) for a in angles], fill=color)
    else:  # cross, a little smaller, so that those of a group do not touch
        r *= 0.8
        pen.line((x - r, y - r, x + r, y + r), fill=color, width=max(2, round(0.5 * r)))
        pen.line((x - r, y + r, x + r, y - r), fill=color, width=max(2, round(0.5 * r)))


def _jitter(rng: random.Random) -> tuple[int, int]:
    return rng.randint(-1, 1), rng.randint(-1, 1)


def _tint(rng: random.Random, color: str) -> tuple[int, ...]:
    return tuple(max(0, min(255, channel + rng.randint(-12, 12))) for channel in RGB[color])
