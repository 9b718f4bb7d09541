"""The objects that flow through the project, and the shape legend.

Shapes: ``P`` prompts, ``G`` completions per prompt (a *group*), ``B = P * G``, ``L`` prompt tokens,
``T`` completion tokens, ``V`` vocabulary, ``R`` rewards.

An example is data (which of two candidates is better); a prompt is an example as it is shown to the
judge (order A/B decided, evidence as captions or pictures); a rollout is what the judge wrote.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from PIL import Image

TaskType = Literal[
    "text", "image understanding", "image generation", "video understanding", "video generation"
]
TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)
Winner = Literal[1, 2, "tie"]
Letter = Literal["A", "B"]


@dataclass(frozen=True)
class Media:
    """One picture or one clip.

    Attributes:
        kind: ``image`` or ``video``.
        source: A file path or URL, encoded bytes, the files of a clip's frames, or the decoded frames (one
            for a picture). A path may lead into an archive; that of a clip may be a folder of frames.
        origin: The file, row and field that name it, for messages.
    """

    kind: Literal["image", "video"]
    source: str | bytes | tuple[str, ...] | tuple[Image.Image, ...]
    origin: str = field(default="", compare=False)

    @property
    def frames(self) -> tuple[Image.Image, ...]:
        """The decoded frames.

        Raises:
            TypeError: The media has not been decoded (see ``data_modules.media.decode``).
        """
        if not isinstance(self.source, tuple) or any(isinstance(frame, str) for frame in self.source):
            raise TypeError(f"{self.kind} is not decoded yet; call data_modules.media.decode first")
        return self.source  # type: ignore[return-value]


@dataclass(frozen=True)
class Rationale:
    """Why an annotator preferred a candidate; the material of a stage-1 SFT target.

    Attributes:
        feedback: What is to be said of candidate 1 and of candidate 2.
        comparison: The two weighed against each other; ``{1}`` and ``{2}`` stand for the candidates' letters.
        preferred: The candidate the annotator chose (annotators err: it may differ from ``winner``).
    """

    feedback: tuple[str, str]
    comparison: str
    preferred: Literal[1, 2]


@dataclass(frozen=True)
class PreferenceExample:
    """A preference as its source states it; who is shown as A is decided later, by a seeded hash of the id.

    Attributes:
        id: Unique within the source.
        task_type: One of ``TASK_TYPES``.
        prompt: The query (understanding, text) or the text that was to be drawn or filmed (generation).
        winner: 1, 2 or ``tie``, in the source's own numbering.
        candidates: The two responses; ``None`` for generation tasks, whose candidates are the two media.
        media: One picture or clip (understanding), two (generation), none (text).
        captions: One caption per medium, or none.
        margin: How clear the preference is, in the source's own unit.
        rationale: An annotator's reasons, where the source has them.
        source: Name of the dataset.
        licence: Its licence.

    Raises:
        ValueError: A field contradicts the task type; the message names the example and the field.
    """

    id: str
    task_type: TaskType
    prompt: str
    winner: Winner
    candidates: tuple[str, str] | None = None
    media: tuple[Media, ...] = ()
    captions: tuple[str, ...] = ()
    margin: float | None = None
    rationale: Rationale | None = None
    source: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise ValueError(f"example {self.id!r} of {self.source or 'unnamed source'}: {problem}")

    def _problem(self) -> str | None:
        if self.task_type not in TASK_TYPES:
            return f"unknown task_type {self.task_type!r}; use one of {', '.join(TASK_TYPES)}"
        if self.winner not in (1, 2, "tie"):
            return f"winner is {self.winner!r}; it must be 1, 2 or 'tie'"
        if self.is_generation == (self.candidates is not None):
            return (
                "generation tasks have two media and no text candidates; all others have two text candidates"
            )
        expected = 0 if self.task_type == "text" else 2 if self.is_generation else 1
        if self.media and len(self.media) != expected:
            return f"{self.task_type} needs {expected} media, found {len(self.media)}"
        if self.captions and len(self.captions) != expected:
            return f"{self.task_type} needs {expected} captions, found {len(self.captions)}"
        if expected and not self.media and not self.captions:
            return f"{self.task_type} needs media or captions"
        return None

    @property
    def is_generation(self) -> bool:
        """Whether the candidates are pictures or clips made for a prompt."""
        return self.task_type.endswith("generation")

    @property
    def is_video(self) -> bool:
        """Whether the media are clips."""
        return self.task_type.startswith("video")
