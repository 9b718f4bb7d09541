"""HelpSteer3, configuration ``preference`` (nvidia/HelpSteer3): text pairs with annotators' reasons.

Schema: ``domain, language, context: [{role, content}], response1, response2, overall_preference`` and
``individual_preference: [{score, reasoning, feedback1, feedback2}]``.
Label: ``overall_preference`` from -3 to 3; below zero response 1 is better, above zero response 2, zero is
a tie.
The margin is its absolute value. The rationale is that of the first annotator who agrees with it.
Licence: CC-BY-4.0. Citation: Wang et al., HelpSteer3-Preference, arXiv:2505.11475.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from data_modules.datasets import fields
from data_modules.datasets.fields import Row
from lit_msrl.types import PreferenceExample, Rationale, Winner

_SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}
_SCORES: dict[object, int] = {score: score for score in range(-3, 4)}
_MENTION = re.compile(r"@?\bresponse\s*#?([12])\b", re.IGNORECASE)


def to_example(row: Row, need_rationale: bool = False) -> PreferenceExample | None:
    """Read one row.

    Args:
        row: The row.
        need_rationale: Leave out rows in which no annotator who agrees gives reasons (and ties): what
            supervised fine-tuning needs.

    Raises:
        ValueError: A field is missing or the preference is not one of -3 to 3.
    """
    score = fields.choice(row, "overall_preference", _SCORES)
    winner = fields.better(-score, 0)
    rationale = next(_reasons(row, winner), None)
    if need_rationale and rationale is None:
        return None
    return PreferenceExample(
        id=fields.identity(row),
        task_type="text",
        prompt=fields.conversation(
            row.get("context"), "context", speaker="role", words="content", speakers=_SPEAKERS
        ),
        winner=winner,
        candidates=(fields.text(row, "response1"), fields.text(row, "response2")),
        margin=float(abs(score)),
        rationale=rationale,
        source="HelpSteer3",
        licence="CC-BY-4.0",
    )


def _reasons(row: Row, winner: Winner) -> Iterator[Rationale]:
    """What annotators who agree with the overall preference say."""
    name = "individual_preference"
    for said in fields.rows(row.get(name), name, least=0):
        complete = all(fields.has(said, part) for part in ("score", "reasoning", "feedback1", "feedback2"))
        if winner == "tie" or not complete or fields.better(-fields.number(said, "score"), 0) != winner:
            continue
        feedback = (_about(said, 1), _about(said, 2))
        yield Rationale(feedback, _MENTION.sub(r"Response {\1}", fields.text(said, "reasoning")), winner)


def _about(said: Row, own: Literal[1, 2]) -> str:
    """Feedback in which no number is left: who is shown as A is decided later."""

    def name(mention: re.Match[str]) -> str:
        return "this response" if int(mention.group(1)) == own else "the other response"

    feedback = _MENTION.sub(name, fields.text(said, f"feedback{own}"))
    return feedback[0].upper() + feedback[1:]
