"""An example that contradicts itself is refused when it is made."""

from typing import Any

import pytest
from PIL import Image

from lit_msrl.types import TASK_TYPES, Media, PreferenceExample

PICTURE = Media("image", (Image.new("RGB", (2, 2)),))
CLIP = Media("video", "clip.mp4")


def make(**changes: Any) -> PreferenceExample:
    fields: dict[str, Any] = {
        "id": "e1",
        "task_type": "text",
        "prompt": "2+2?",
        "winner": 1,
        "candidates": ("4", "5"),
        "source": "sums",
    }
    return PreferenceExample(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"task_type": "audio"}, "unknown task_type 'audio'"),
        ({"winner": 0}, "winner is 0"),
        ({"winner": "A"}, "winner is 'A'"),
        ({"winner": None}, "winner is None"),
        ({"candidates": None}, "two text candidates"),
        ({"task_type": "image generation", "media": (PICTURE, PICTURE)}, "no text candidates"),
        ({"media": (PICTURE,)}, "text needs 0 media, found 1"),
        ({"task_type": "image understanding"}, "needs media or captions"),
        ({"task_type": "image understanding", "media": (PICTURE, PICTURE)}, "needs 1 media, found 2"),
        ({"task_type": "video generation", "candidates": None, "media": (CLIP,)}, "needs 2 media, found 1"),
        ({"task_type": "video generation", "candidates": None, "captions": ("one",)}, "needs 2 captions"),
    ],
)
def test_contradictions_are_refused_by_name(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as error:
        make(**changes)
    assert str(error.value).startswith("example 'e1' of sums: ")


@pytest.mark.parametrize("winner", [1, 2, "tie"])
def test_every_winner(winner: Any) -> None:
    assert make(winner=winner).winner == winner


def test_every_task_type_can_be_made() -> None:
    for task_type in TASK_TYPES:
        generation = task_type.endswith("generation")
        captions = {"text": 0}.get(task_type, 2 if generation else 1) * ("a dog",)
        example = make(task_type=task_type, captions=captions, candidates=None if generation else ("x", "y"))
        assert (example.is_generation, example.is_video) == (generation, "video" in task_type)


def test_media_must_be_decoded_before_its_frames_are_read() -> None:
    assert len(PICTURE.frames) == 1
    with pytest.raises(TypeError, match="video is not decoded"):
        _ = CLIP.frames
