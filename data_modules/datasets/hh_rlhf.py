"""HH-RLHF (Anthropic/hh-rlhf): pairs of conversations with an assistant, helpful or harmless.

Schema: ``chosen, rejected``, transcripts whose turns begin with ``Human:`` and ``Assistant:``, each after an
empty line.
Label: ``chosen`` is better; it is stored as candidate 1. The turns that both share are the prompt, the
assistant's last turns the candidates. In a few rows the conversations part earlier; those are left out, for
then the candidates do not answer the same thing. So are rows in which a candidate is empty.
Licence: MIT. Citation: Bai et al., Training a Helpful and Harmless Assistant, arXiv:2204.05862.
"""

from __future__ import annotations

import re

from data_modules.datasets import fields
from data_modules.datasets.fields import Row
from lit_msrl.types import PreferenceExample

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_SPEAKERS = {"Human": "User", "Assistant": "Assistant"}


def to_example(row: Row) -> PreferenceExample | None:
    """Read one row.

    Raises:
        ValueError: A field is missing or no transcript that ends with the assistant.
    """
    chosen, rejected = _turns(row, "chosen"), _turns(row, "rejected")
    if chosen[:-1] != rejected[:-1] or not chosen[-1]["said"] or not rejected[-1]["said"]:
        return None
    return PreferenceExample(
        id=fields.identity(row),
        task_type="text",
        prompt=fields.conversation(chosen[:-1], "chosen", speaker="who", words="said", speakers=_SPEAKERS),
        winner=1,
        candidates=(chosen[-1]["said"], rejected[-1]["said"]),
        source="hh-rlhf",
        licence="MIT",
    )


def _turns(row: Row, name: str) -> list[dict[str, str]]:
    pieces = _TURN.split(fields.text(row, name))
    turns = [{"who": who, "said": said.strip()} for who, said in zip(pieces[1::2], pieces[2::2], strict=True)]
    if len(turns) < 2 or turns[-1]["who"] != "Assistant":
        raise ValueError(f"field {name!r} is no transcript of Human and Assistant that ends with Assistant")
    return turns
