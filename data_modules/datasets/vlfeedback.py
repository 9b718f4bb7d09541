"""VLFeedback (MMInstruction/VLFeedback): several models' answers about a picture, rated by GPT-4V.

Schema: ``id, prompt, models, completions: [{annotations: {aspect: {Rating, Rationale}}, model, response}],
img_path``; the aspects are Helpfulness, Ethical Considerations and Visual Faithfulness, ratings are text.
Label: the mean of an answer's ratings. An answer with a rating that is not a number is not used. A row
becomes the pair of its best and its worst answer, or every pair (``pairs="all"``, then with ties); a pair
keeps the source's order, and its id names the two. The margin is the difference of means.
Licence: not stated on the card. Citation: Li et al., VLFeedback, arXiv:2410.09421.
"""

from __future__ import annotations

from data_modules.datasets import fields
from data_modules.datasets.fields import Pairs, Row
from lit_msrl.types import PreferenceExample


def to_example(row: Row, pairs: Pairs = "best-worst") -> list[PreferenceExample]:
    """Read one row.

    Args:
        row: The row.
        pairs: ``best-worst`` or ``all``.

    Raises:
        ValueError: A field is missing, or no answer is rated.
    """
    completions = fields.rows(row.get("completions"), "completions", least=2)
    scored = [(i, score) for i, each in enumerate(completions) if (score := _score(each)) is not None]
    if len(scored) < 2:
        raise ValueError("field 'completions' has fewer than two answers with ratings")
    return [
        _pair(row, completions, scored[i], scored[j])
        for i, j in fields.ranked_pairs([score for _, score in scored], pairs)
    ]


def _pair(
    row: Row, completions: list[Row], one: tuple[int, float], two: tuple[int, float]
) -> PreferenceExample:
    (first, score), (second, other) = one, two
    return PreferenceExample(
        id=f"{fields.identity(row)}-{first}-{second}",
        task_type="image understanding",
        prompt=fields.text(row, "prompt"),
        winner=fields.better(score, other),
        candidates=(
            fields.text(completions[first], "response"), fields.text(completions[second], "response")
        ),
        media=(fields.media(row, "img_path", "image"),),
        margin=abs(score - other),
        source="VLFeedback",
    )  # fmt: skip


def _score(completion: Row) -> float | None:
    """The mean rating; ``None`` if one is missing or says "N/A"."""
    annotations = completion.get("annotations")
    if not isinstance(annotations, dict) or not annotations:
        raise ValueError("field 'completions' has an answer without 'annotations'")
    try:
        ratings = [fields.number(aspect, "Rating") for aspect in annotations.values()]
    except ValueError:
        return None
    return sum(ratings) / len(ratings)
