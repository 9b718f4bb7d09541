"""The discriminative baseline: one score per candidate, learned from which one is better."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from data_modules import PreferenceDataModule, Rows
from data_modules.world.preferences import make_example
from lit_msrl.prompts import MEDIA_MARK, render_candidate
from lit_msrl.stages import DiscriminativeRM
from lit_msrl.types import PreferenceExample
from tests.conftest import tiny_internvl
from tests.stages.test_rlvr import trainer


def example(**fields: Any) -> PreferenceExample:
    defaults = {"id": "e", "prompt": "2+2?", "winner": 1, "candidates": ("four", "five")}
    return PreferenceExample(task_type="text", **(defaults | fields))


def module(**options) -> DiscriminativeRM:
    return DiscriminativeRM(
        tiny_internvl(),
        {"language": 1e-3, "projector": 1e-3, "vision": 1e-3},
        partial(torch.optim.AdamW, lr=1.0),
        **options,
    )


def scored(by_answer: dict[str, float]) -> DiscriminativeRM:
    """A model whose scores are given."""
    stage = module()
    stage.scores = lambda examples: torch.tensor(  # type: ignore[method-assign]
        [[by_answer[c] for c in e.candidates or ()] for e in examples]
    )
    stage.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return stage


def test_the_loss_is_bradley_terry() -> None:
    stage = scored({"four": 2.0, "five": 0.5})
    right, wrong = (example(candidates=("four", "five"), winner=winner) for winner in (1, 2))
    assert_close(stage.training_step([right], 0).item(), math.log(1 + math.exp(-1.5)))
    assert_close(stage.training_step([wrong], 0).item(), math.log(1 + math.exp(1.5)))
    both = (math.log(1 + math.exp(-1.5)) + math.log(1 + math.exp(1.5))) / 2
    assert_close(stage.training_step([right, wrong], 0).item(), both)


def test_a_tie_is_refused() -> None:
    with pytest.raises(ValueError, match="is a tie"):
        scored({"four": 2.0, "five": 0.5}).training_step([example(winner="tie")], 0)


def test_the_candidate_is_shown_alone() -> None:
    seen = make_example("image generation", 0, seed=0, split="train")
    for candidate in (1, 2):
        text, media = render_candidate(seen, candidate)
        assert media == (seen.media[candidate - 1],)
        assert text.count(MEDIA_MARK) == 1
        told, none = render_candidate(seen, candidate, view="caption")
        assert none == ()
        assert seen.captions[candidate - 1] in told
        assert seen.captions[2 - candidate] not in told
    asked = make_example("video understanding", 0, seed=0, split="train")
    assert asked.candidates is not None
    text, media = render_candidate(asked, 2)
    assert asked.candidates[1] in text
    assert asked.candidates[0] not in text
    assert media == asked.media


def test_a_score_is_of_the_candidate_not_of_its_place() -> None:
    stage = module().eval()
    torch.nn.init.normal_(stage.score_head.weight)
    one = make_example("image generation", 3, seed=0, split="train")
    turned = PreferenceExample(
        one.id, one.task_type, one.prompt, 1, media=one.media[::-1], captions=one.captions[::-1]
    )
    with torch.no_grad():
        scores, swapped = stage.scores([one])[0], stage.scores([turned])[0]
    assert_close(scores.flip(0), swapped)
    records = list(stage.judge([one]))
    assert [r.order for r in records] == ["AB", "BA"]
    assert records[0].preferred == records[1].preferred == (1 if scores[0] > scores[1] else 2)


def test_it_learns_what_it_is_shown(tmp_path: Path) -> None:
    """Text preferences in which the better candidate says "true": separable within a few steps."""
    words = ["red", "blue", "four", "ring"]
    rows = [
        {
            "id": str(i),
            "prompt": f"{words[i % 4]}?",
            "candidate_1": "true" if i % 2 else "false",
            "candidate_2": "false" if i % 2 else "true",
            "winner": 1 if i % 2 else 2,
        }
        for i in range(8)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    source = Rows(str(file), adapter="generic")
    stage = module(head_learning_rate=1e-2)
    before = [p.clone() for p in stage.policy.parameters()]
    trainer(tmp_path, max_steps=12).fit(stage, PreferenceDataModule(source, source, batch_size=8))
    made = [example["example"] for example in source.dataset()]
    assert all(record.correct for record in stage.judge(made))
    assert any(not p.equal(q) for p, q in zip(before, stage.policy.parameters(), strict=True))
