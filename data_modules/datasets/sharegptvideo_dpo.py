"""ShareGPTVideo-DPO: answers to questions about a clip, in its upstream form and in CodeGoat24's.

Schema, upstream (ShareGPTVideo/train_video_and_instruction, ``sft_dpo_17k.jsonl``): ``id, prompt, video,
chosen, rejected``; some copies have ``conversations: [{from: human, value}]`` in place of ``prompt`` and
``{from, value}`` as ``chosen`` and ``rejected``. ``video`` names a folder of frames (``train_300k``), or a
clip.
Schema, CodeGoat24/ShareGPTVideo-DPO: that of ``unified_reward``; pointwise rows are left out.
The clips of the benchmark ``data_modules.benchmarks.sharegptvideo`` are held out, in every form: one in
seventeen, by a hash of the clip's id.
Label: ``chosen`` is better and is candidate 1; or what the judgement says.
Licence: Apache-2.0 (upstream). Citation: Zhang et al., Direct Preference Optimization of Video Large
Multimodal Models from Language Model Reward, arXiv:2404.01258.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import PurePosixPath

from data_modules.datasets import fields, unified_reward
from data_modules.datasets.fields import Row
from lit_msrl.types import Media, PreferenceExample

_PARTS = 17
_CLIPS = (".mp4", ".webm", ".mkv", ".avi", ".mov")


def to_example(row: Row) -> PreferenceExample | None:
    """Read one row of either form.

    Raises:
        ValueError: A field is missing or not as above.
        HeldOut: The clip belongs to the benchmark.
    """
    if "chosen" not in row and "images" in row:
        example = unified_reward.to_example(row, "video understanding", "ShareGPTVideo-DPO")
    else:
        example = _upstream(row)
    if example is not None and held_out(clip_id(example.media[0])):
        raise fields.HeldOut
    return example


def clip_id(media: Media) -> str:
    """The id of a clip: the name of its file or of the folder of its frames; empty where only bytes are.

    Example:
        >>> clip_id(Media("video", "videos/v_1.mp4")), clip_id(Media("video", ("a/v_1/1.jpg", "a/v_1/2.jpg")))
        ('v_1', 'v_1')
    """
    source = media.source
    if isinstance(source, tuple):
        source = str(PurePosixPath(str(source[0])).parent)
    if isinstance(source, bytes):
        return ""
    name = PurePosixPath(source)
    return name.stem if name.suffix.lower() in _CLIPS else name.name


def held_out(clip: str) -> bool:
    """Whether a clip belongs to the benchmark's split; never train on it.

    Args:
        clip: Its id, see ``clip_id``.

    Example:
        >>> sum(held_out(f"v_{i}") for i in range(1700))
        116
    """
    state = hashlib.blake2b(clip.encode(), digest_size=4).digest()
    return bool(clip) and int.from_bytes(state, "big") % _PARTS == 0


def _upstream(row: Row) -> PreferenceExample:
    return PreferenceExample(
        id=fields.identity(row),
        task_type="video understanding",
        prompt=_prompt(row),
        winner=1,
        candidates=(_said(row, "chosen"), _said(row, "rejected")),
        media=(fields.media(row, "video", "video"),),
        source="ShareGPTVideo-DPO",
        licence="Apache-2.0",
    )


def _prompt(row: Row) -> str:
    if fields.has(row, "prompt"):
        asked = fields.text(row, "prompt")
    else:
        asked = fields.text(fields.rows(row.get("conversations"), "conversations")[0], "value")
    return asked.replace("<video>", "").strip()


def _said(row: Row, name: str) -> str:
    said = row.get(name)
    return fields.text({name: said.get("value")} if isinstance(said, Mapping) else row, name)
