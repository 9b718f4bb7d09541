"""ShareGPTVideo-DPO: answers to questions about a clip, in its upstream form and in CodeGoat24's.

Schema, upstream (ShareGPTVideo/train_video_and_instruction, ``sft_dpo_17k.jsonl``): ``id, prompt, video,
chosen, rejected``; some copies have ``conversations: [{from: human, value}]`` in place of ``prompt`` and
``{from, value}`` as ``chosen`` and ``rejected``. ``video`` names a folder of frames (``train_300k``), or a
clip.
Schema, CodeGoat24/ShareGPTVideo-DPO: that of ``unified_reward``; pointwise rows are left out.
Label: ``chosen`` is better and is candidate 1; or what the judgement says.
Licence: Apache-2.0 (upstream). Citation: Zhang et al., Direct Preference Optimization of Video Large
Multimodal Models from Language Model Reward, arXiv:2404.01258.
"""

from __future__ import annotations

from collections.abc import Mapping

from data_modules.datasets import fields, unified_reward
from data_modules.datasets.fields import Row
from lit_msrl.types import PreferenceExample


def to_example(row: Row) -> PreferenceExample | None:
    """Read one row of either form.

    Raises:
        ValueError: A field is missing or not as above.
    """
    if "chosen" not in row and "images" in row:
        return unified_reward.to_example(row, "video understanding", "ShareGPTVideo-DPO")
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
