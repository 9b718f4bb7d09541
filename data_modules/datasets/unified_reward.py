"""Sets in the form UnifiedReward was trained on (CodeGoat24): a judging prompt, media and a verdict.

Schema: ``conversations: [{from: human, value}, {from: gpt, value}], images: [path]``. The human turn of an
understanding task holds ``Question: ... Answer 1: ... Answer 2: ...`` and then criteria, that of a
generation task ``Text Caption: ...``. The media of a pair of clips are two files, or the frames of the
first and then, as many, of the second.
Label: what the gpt turn says last, ``Answer|Response|Image|Video 1|2 is better``; both equally good is a
tie.
Licence: that of the set. Citation: Wang et al., Unified Reward Model, arXiv:2503.05236.
The prompts were read in the published inference scripts; no row of a set itself was seen.
"""

from __future__ import annotations

import re
from typing import Literal

from data_modules.datasets import fields
from data_modules.datasets.fields import Row
from lit_msrl.types import Media, PreferenceExample, TaskType, Winner

_PAIR = re.compile(
    r"Question:(?P<question>.*?)\n[ \t-]*(?:Answer|Response) 1:(?P<first>.*?)"
    r"\n[ \t-]*(?:Answer|Response) 2:(?P<second>.*?)(?:\n\s*Please evaluate|\n\s*Evaluate both|\Z)",
    re.DOTALL,
)
_CAPTION = re.compile(r"Text Caption:\s*(?P<caption>.+?)\s*\Z", re.DOTALL)
_VERDICT = re.compile(
    r"(?:Answer|Response|Image|Video)s?\s*(?P<winner>[12])\s*is\s*(?:slightly |the |much )?better"
    r"|(?P<tie>equally good)",
    re.IGNORECASE,
)


def to_example(
    row: Row, task_type: TaskType, source: str = "UnifiedReward", licence: str = ""
) -> PreferenceExample | None:
    """Read one row; rows that rate a single candidate (pointwise) are left out.

    Args:
        row: The row.
        task_type: Which of the four multimodal tasks the file holds.
        source: Name of the set.
        licence: Its licence.

    Raises:
        ValueError: A field is missing or not as above.
    """
    turns = fields.rows(row.get("conversations"), "conversations", least=2)
    asked, verdict = fields.text(turns[0], "value"), fields.text(turns[-1], "value")
    generation = task_type.endswith("generation")
    if not generation and not re.search(r"(?:Answer|Response) 2:", asked):
        return None
    found = (_CAPTION if generation else _PAIR).search(asked)
    if not found or not all(part.strip() for part in found.groups()):
        parts = "a Text Caption" if generation else "a Question, an Answer 1 and an Answer 2"
        raise ValueError(f"field 'conversations' holds no prompt with {parts}")
    candidates = None if generation else (found.group("first").strip(), found.group("second").strip())
    return PreferenceExample(
        id=fields.identity(row),
        task_type=task_type,
        prompt=_unbracketed(found.group(1).strip()),
        winner=_winner(verdict),
        candidates=candidates,
        media=_media(row, "video" if task_type.startswith("video") else "image", 2 if generation else 1),
        source=source,
        licence=licence,
    )


def _winner(verdict: str) -> Winner:
    found = list(_VERDICT.finditer(verdict))
    if not found:
        raise ValueError(f"field 'conversations' ends in {verdict[-60:]!r}, which names no better candidate")
    return "tie" if found[-1].group("tie") else 1 if found[-1].group("winner") == "1" else 2


def _media(row: Row, kind: Literal["image", "video"], count: int) -> tuple[Media, ...]:
    files = row.get("images")
    if not isinstance(files, list) or not files or not all(isinstance(name, str) and name for name in files):
        raise ValueError("field 'images' must be a list of paths")
    if len(files) % count or (kind == "image" and len(files) != count):
        raise ValueError(f"field 'images' has {len(files)} files, which are not {count} {kind}s")
    size = len(files) // count
    parts = [files[i * size : (i + 1) * size] for i in range(count)]
    return tuple(Media(kind, part[0] if _whole(part, kind) else tuple(part), "images") for part in parts)


def _whole(part: list[str], kind: str) -> bool:
    """Whether it is one file, not a clip's frames."""
    return len(part) == 1 and (kind == "image" or part[0].lower().endswith((".mp4", ".avi", ".webm", ".mov")))


def _unbracketed(caption: str) -> str:
    return caption[1:-1].strip() if caption.startswith("[") and caption.endswith("]") else caption
