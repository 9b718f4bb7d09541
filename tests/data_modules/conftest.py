"""Small clips, made on the spot."""

from collections.abc import Callable
from pathlib import Path

import av
import pytest
from PIL import Image


@pytest.fixture
def clip(tmp_path: Path) -> Callable[..., Path]:
    """A clip whose frame ``i`` is grey of level ``10 * (i % 25)``."""

    def make(frames: int = 12, name: str = "clip.mp4", movflags: str = "") -> Path:
        path = tmp_path / name
        with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
            stream = container.add_stream("mpeg4", rate=8)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for i in range(frames):
                grey = Image.new("RGB", (32, 32), (10 * (i % 25),) * 3)
                container.mux(stream.encode(av.VideoFrame.from_image(grey)))
            container.mux(stream.encode())
        return path

    return make
