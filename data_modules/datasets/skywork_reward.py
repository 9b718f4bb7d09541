"""Skywork Reward Preference (Skywork/Skywork-Reward-Preference-80K-v0.2): text pairs of several sources.

Schema: ``chosen: [{role, content}], rejected: [{role, content}], source``.
Label: ``chosen`` is better; it is stored as candidate 1. The turns before the last are the prompt; a row
in which they differ is left out. Version 0.1 is contaminated with RewardBench prompts; use 0.2.
Licence: the card names none; that of the constituents. Citation: Liu et al., Skywork-Reward,
arXiv:2410.18451.
"""

from __future__ import annotations

from typing import Any

from data_modules.datasets import fields
from data_modules.datasets.fields import Row
from lit_msrl.types import PreferenceExample

_SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}


def to_example(row: Row) -> PreferenceExample | None:
    """Read one row.

    Raises:
        ValueError: A conversation is missing or does not end with the assistant.
    """
    chosen, rejected = _turns(row, "chosen"), _turns(row, "rejected")
    if chosen[:-1] != rejected[:-1]:
        return None
    return PreferenceExample(
        id=fields.identity(row),
        task_type="text",
        prompt=fields.conversation(
            chosen[:-1], "chosen", speaker="role", words="content", speakers=_SPEAKERS
        ),
        winner=1,
        candidates=(fields.text(chosen[-1], "content"), fields.text(rejected[-1], "content")),
        source="Skywork-Reward-Preference",
    )


def _turns(row: Row, name: str) -> list[Any]:
    turns = fields.rows(row.get(name), name, least=2)
    if turns[-1].get("role") != "assistant":
        raise ValueError(f"field {name!r} must end with an assistant turn, not {turns[-1].get('role')!r}")
    return turns
