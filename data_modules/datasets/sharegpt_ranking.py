"""Text pairs in the ShareGPT ranking format of LLaMA-Factory (``dpo_en_demo.json`` and others).

Schema: ``conversations: [{from: system|human|gpt, value}], chosen: {from, value}, rejected: {from, value}``;
optional ``id``. Label: ``chosen`` is better; it is stored as candidate 1.
Licence: that of the file (the demo: Apache-2.0). Citation: Zheng et al., LlamaFactory, arXiv:2403.13372.
"""

from __future__ import annotations

from data_modules.datasets import fields
from data_modules.datasets.fields import Row
from lit_msrl.types import PreferenceExample

_SPEAKERS = {"system": "System", "human": "User", "gpt": "Assistant"}


def to_example(row: Row) -> PreferenceExample:
    """Read one row; a conversation of several turns becomes one prompt with the speakers named.

    Raises:
        ValueError: A field is missing or a speaker is unknown.
    """
    turns = row.get("conversations")
    return PreferenceExample(
        id=fields.identity(row),
        task_type="text",
        prompt=fields.conversation(turns, "conversations", speaker="from", words="value", speakers=_SPEAKERS),
        winner=1,
        candidates=(_response(row, "chosen"), _response(row, "rejected")),
        source="ShareGPT ranking",
    )


def _response(row: Row, name: str) -> str:
    turn = row.get(name)
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or not turn["value"]:
        raise ValueError(f"field {name!r} is missing or has no 'value'")
    return turn["value"]
