"""What the tests of the data are made of."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from data_modules.sources import Source
from lit_msrl.types import Media, PreferenceExample

REALDATA = Path(__file__).parents[3] / "shared" / "realdata"
needs_realdata = pytest.mark.skipif(not REALDATA.is_dir(), reason="the real files are not here")


def level(frame: Image.Image) -> int:
    """Which frame of the made clip this is."""
    pixel = frame.getpixel((16, 16))
    assert isinstance(pixel, tuple)
    return round(pixel[0] / 10)


def photograph(seed: int, size: int = 256) -> Image.Image:
    """Soft patches of colour, as a photograph has them."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return coarse.resize((size, size), Image.Resampling.BICUBIC)


class Numbers(Source):
    """Text preferences ``n0, n1, ...``; with ``captions`` pictures and captions in their place.

    Args:
        count: How many.
        name: What the ids begin with.
        captions: Caption the examples.
        media: A picture file that every example shows.
    """

    def __init__(self, count: int, name: str = "n", captions: bool = False, media: str | None = None) -> None:
        self.count, self.name, self.captions, self.media = count, name, captions, media

    def describe(self) -> str:
        return f"{self.count} numbers {self.name}"

    def dataset(self) -> datasets.IterableDataset:
        return datasets.IterableDataset.from_generator(self._examples)  # type: ignore[return-value]

    def _examples(self):
        for i in range(self.count):
            yield {"example": self._example(f"{self.name}{i}")}

    def _example(self, name: str) -> PreferenceExample:
        captions = ("a cat",) if self.captions else ()
        media = (Media("image", self.media),) if self.media else ()
        task = "image understanding" if captions or media else "text"
        return PreferenceExample(name, task, "q", 1, ("a", "b"), media, captions, source=self.name)
