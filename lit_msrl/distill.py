"""Cross-modal knowledge distillation (CMKD): which of the sampled judgements is worth imitating."""

from __future__ import annotations

from collections.abc import Sequence

from lit_msrl.prompts import Judgement
from lit_msrl.voting import majority


def select(judgements: Sequence[Judgement], confidences: Sequence[float]) -> int | None:
    """The judgement ``o*`` to distil from the samples of one prompt (paper, section 3.3).

    In this order: the majority of the verdicts is the pseudo-label and its supporters stay; the well-formed
    among them stay; the most confident is chosen. No preference label is used.

    Args:
        judgements: The ``n`` samples, parsed.
        confidences: One number each, such as the mean log-probability of its tokens.

    Returns:
        Its index, or ``None`` when the vote is undecided or no supporter is well-formed.
    """
    label = majority([judgement.answer for judgement in judgements])
    kept = [i for i, j in enumerate(judgements) if label is not None and j.answer == label and j.well_formed]
    return max(kept, key=lambda i: confidences[i], default=None)
