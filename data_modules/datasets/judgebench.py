"""JudgeBench (ScalerLab/JudgeBench): text response pairs with objectively correct verdicts.

Schema: ``pair_id, original_id, source, question, response_model, response_A, response_B, label``.
Label: ``A>B`` or ``B>A``; response A is candidate 1. Licence: MIT.
Citation: Tan et al., JudgeBench: A Benchmark for Evaluating LLM-based Judges, arXiv:2410.12784.
"""

from __future__ import annotations

from data_modules.datasets import fields
from data_modules.datasets.fields import Row
from lit_msrl.types import PreferenceExample, Winner

_LABELS: dict[str, Winner] = {"A>B": 1, "B>A": 2}


def to_example(row: Row) -> PreferenceExample:
    """Read one row.

    Raises:
        ValueError: A field is missing or the label is unknown.
    """
    return PreferenceExample(
        id=fields.identity(row, "pair_id"),
        task_type="text",
        prompt=fields.text(row, "question"),
        winner=fields.choice(row, "label", _LABELS),
        candidates=(fields.text(row, "response_A"), fields.text(row, "response_B")),
        source="JudgeBench",
        licence="MIT",
    )
