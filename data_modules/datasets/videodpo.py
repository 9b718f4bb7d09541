"""VideoDPO: pairs of clips made for a prompt, ranked by a score, in its upstream form and in CodeGoat24's.

Schema, upstream (``pair.json`` of VideoDPOData and VCDPO2Data): ``video1, video2, frame_caption`` and
perhaps ``score``. A clip is a number: an even one is ``winvideos/{number // 2:06d}.mp4``, an odd one the
same in ``losevideos``; ``frame_caption`` is the prompt, or a list that begins with it.
Schema, CodeGoat24/VideoDPO (``train_data.json``, and ``qwen/..._rev.json`` with the order reversed): that
of ``unified_reward``. The clips come in two archives, which need not be unpacked: ``media_root:
[winvideos.zip, losevideos.zip]``.
Label: the even one of ``video1`` and ``video2`` is better; or what the judgement says. The margin is
``score``.
Licence: MIT. Citation: Liu et al., VideoDPO, arXiv:2412.14167.
"""

from __future__ import annotations

from data_modules.datasets import fields, unified_reward
from data_modules.datasets.fields import Row
from lit_msrl.types import Media, PreferenceExample

_FOLDERS = ("winvideos", "losevideos")


def to_example(row: Row) -> PreferenceExample | None:
    """Read one row of either form.

    Raises:
        ValueError: A field is missing, or the two clips are not a better and a worse one.
    """
    if "video1" not in row and "images" in row:
        return unified_reward.to_example(row, "video generation", "VideoDPO", "MIT")
    numbers = [_number(row, name) for name in ("video1", "video2")]
    if sum(number % 2 for number in numbers) != 1:
        raise ValueError(f"fields 'video1' and 'video2' are {numbers}; one must be even (better), one odd")
    media = [
        Media("video", f"{_FOLDERS[number % 2]}/{number // 2:06d}.mp4", f"video{i}")
        for i, number in enumerate(numbers, start=1)
    ]
    return PreferenceExample(
        id=fields.identity(row),
        task_type="video generation",
        prompt=_prompt(row),
        winner=1 if numbers[0] % 2 == 0 else 2,
        media=tuple(media),
        margin=fields.number(row, "score") if fields.has(row, "score") else None,
        source="VideoDPO",
        licence="MIT",
    )


def _number(row: Row, name: str) -> int:
    value = fields.number(row, name)
    if value != int(value) or value < 0:
        raise ValueError(f"field {name!r} is {row[name]!r}, not the number of a clip")
    return int(value)


def _prompt(row: Row) -> str:
    caption = row.get("frame_caption")
    first = caption[0] if isinstance(caption, list) and caption else caption
    return fields.text({"frame_caption": first}, "frame_caption")
