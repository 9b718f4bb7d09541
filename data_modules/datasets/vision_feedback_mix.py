"""vision-feedback-mix-binarized (NiuTrans, wangclnlp): answers to questions about a picture, of five sets.

Schema: ``id, origin_pre_dataset, image, image_path, conversations``. ``image`` holds the encoded picture
(or give ``image_path`` and a ``media_root``); ``conversations`` is JSON text, ``[{"from": "human",
"value": prompt}, {"from": "gpt", "preference_values": [preferred, dispreferred]}]``; earlier turns are
part of the prompt.
Label: the first of ``preference_values`` is always better; it is stored as candidate 1. A row whose two
answers are the same is left out.
Licence: MIT on the card; of the constituents RLHF-V and RLAIF-V are CC-BY-NC-4.0.
Citation: Wang et al., RoVRM: A Robust Visual Reward Model, arXiv:2408.12109.
"""

from __future__ import annotations

from data_modules.datasets import fields
from data_modules.datasets.fields import Row
from lit_msrl.types import PreferenceExample


def to_example(row: Row) -> PreferenceExample | None:
    """Read one row.

    Raises:
        ValueError: A field is missing or not as above.
    """
    turns = fields.rows(fields.unpack(row, "conversations"), "conversations", least=2)
    values = turns[-1].get("preference_values")
    if not isinstance(values, list) or len(values) != 2 or not all(isinstance(v, str) and v for v in values):
        raise ValueError("field 'conversations' must end with two texts as 'preference_values'")
    if turns[-2].get("from") != "human":
        raise ValueError("field 'conversations' must have a human turn before its last one")
    if values[0] == values[1]:
        return None
    picture = "image" if fields.has(row, "image") else "image_path"
    return PreferenceExample(
        id=fields.identity(row),
        task_type="image understanding",
        prompt=fields.text(turns[-2], "value").replace("<image>", "").strip(),
        winner=1,
        candidates=(values[0], values[1]),
        media=(fields.media(row, picture, "image"),),
        source="vision-feedback-mix",
        licence="MIT",
    )
