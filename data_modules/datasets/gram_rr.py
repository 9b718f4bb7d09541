"""GRAM-RR (wangclnlp/GRAM-RR-TrainingData) and siblings of GRAM: text pairs inside judging prompts.

Schema: ``instruction, input, output``. The instruction is a whole judging prompt that holds ``[User
Question]`` and ``[The Start of Assistant A's Response] ... [The End of Assistant A's Response]``, the same
for B (siblings write ``Answer``); ``input`` is empty or goes on with it. Only question and responses are
kept: the project has its own judging prompt.
Label: ``output``, a letter alone or in ``<answer>`` at the end; A is candidate 1. Its reasoning is not
used.
Licence: Apache-2.0. Citation: Wang et al., GRAM-R2, arXiv:2509.02492.
The card shows the template of the instruction; no row of the set itself was seen.
"""

from __future__ import annotations

import re

from data_modules.datasets import fields
from data_modules.datasets.fields import Row
from lit_msrl.types import PreferenceExample, Winner

_WINNERS: dict[str, Winner] = {"A": 1, "B": 2}
_PARTS = re.compile(
    r"\[User Question\](?P<question>.*?)"
    r"\[The Start of Assistant A's (?:Response|Answer)\](?P<a>.*?)"
    r"\[The End of Assistant A's (?:Response|Answer)\]\s*"
    r"\[The Start of Assistant B's (?:Response|Answer)\](?P<b>.*?)"
    r"\[The End of Assistant B's (?:Response|Answer)\]",
    re.DOTALL,
)
_TAGGED = re.compile(r"<answer>\s*([AB])\s*</answer>\s*$")


def to_example(row: Row) -> PreferenceExample:
    """Read one row.

    Raises:
        ValueError: The instruction lacks a part, or the output does not end in a verdict.
    """
    asked = fields.text(row, "instruction")
    asked += f"\n{fields.text(row, 'input')}" if fields.has(row, "input") else ""
    found = _PARTS.search(asked)
    parts = [part.strip() for part in found.group("question", "a", "b")] if found else []
    if not parts or not all(parts):
        raise ValueError("field 'instruction' lacks a [User Question] or the response of Assistant A or B")
    return PreferenceExample(
        id=fields.identity(row),
        task_type="text",
        prompt=parts[0],
        winner=_winner(fields.text(row, "output")),
        candidates=(parts[1], parts[2]),
        source="GRAM-RR",
        licence="Apache-2.0",
    )


def _winner(output: str) -> Winner:
    tagged = _TAGGED.search(output)
    verdict = tagged.group(1) if tagged else output.strip()
    if verdict not in _WINNERS:
        raise ValueError(f"field 'output' ends in {output[-40:]!r}; expected A or B, alone or in <answer>")
    return _WINNERS[verdict]
