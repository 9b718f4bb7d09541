"""Benchmark pictures that training pictures nearly repeat: perceptual hashes (ImageHash), Hamming distance.

A perceptual hash keeps the 64 signs of a picture's coarsest frequencies. Another size, format or quality
changes few of them; a crop, a mirror image or a drawing over it many, and these are not found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image, ImageStat

from data_modules.benchmarks import load
from data_modules.media import Decoder, MediaError
from lit_msrl.types import PreferenceExample

THRESHOLD = 6  # of 64 signs may differ
BLANK = 4.0  # grey levels: pictures that deviate less from their mean all resemble each other


class NearPicture(NamedTuple):
    """A training picture that nearly is a benchmark's.

    Attributes:
        training: The id of its example.
        benchmark: The id of the other's.
        distance: How many of 64 signs differ.
    """

    training: str
    benchmark: str
    distance: int


def fingerprint(picture: Image.Image) -> int | None:
    """64 bits that pictures which look alike share; ``None`` for a picture that is nearly blank."""
    if ImageStat.Stat(picture.convert("L")).stddev[0] < BLANK:
        return None
    return int(str(imagehash.phash(picture)), 16)


def picture_prints(
    example: PreferenceExample, decoder: Decoder, unreadable: list[str]
) -> Iterator[tuple[str, int]]:
    """The example's id with the fingerprint of each of its pictures; nearly blank ones have none.

    Args:
        example: The example, pictures not decoded.
        decoder: Decodes them.
        unreadable: Is told what is wrong with those that cannot be read, unless it knows.
    """
    for media in example.media:
        if media.kind != "image":
            continue
        try:
            own = fingerprint(decoder(media).frames[0])
        except MediaError as error:
            said = f"{media.origin or 'example ' + example.id}: {error}"
            unreadable += [said] if said not in unreadable else []
            continue
        if own is not None:
            yield example.id, own


def benchmark_pictures(benchmark: str, decoder: Decoder) -> list[tuple[str, int]]:
    """Ids and fingerprints of a benchmark's pictures.

    Args:
        benchmark: Its name and its data, ``vl_rewardbench=FILE``.
        decoder: Decodes them.

    Raises:
        ValueError: It is unknown, or a picture cannot be read.
    """
    name, _, data = benchmark.partition("=")
    if not data:
        raise ValueError(f"--against_pictures={benchmark}: name benchmark and data, vl_rewardbench=FILE")
    unreadable: list[str] = []
    prints = [each for e in load(name, data) for each in picture_prints(e, decoder, unreadable)]
    if unreadable:
        raise ValueError(f"{len(unreadable)} pictures of {name} cannot be read: {unreadable[0]}")
    return prints


def near_pictures(
    training: Iterable[tuple[str, int]], benchmark: Iterable[tuple[str, int]]
) -> Iterator[NearPicture]:
    """For each training picture, the benchmark picture it resembles most, if it is that alike.

    Args:
        training: Ids and fingerprints; an id may have several.
        benchmark: Ids and fingerprints.
    """
    names, prints = zip(*benchmark, strict=True) if (benchmark := list(benchmark)) else ((), ())
    known = np.array(prints, dtype=np.uint64)
    for name, own in training:
        distances = np.bitwise_count(known ^ np.uint64(own))
        if len(known) and distances.min() <= THRESHOLD:
            closest = int(distances.argmin())
            yield NearPicture(name, names[closest], int(distances[closest]))
