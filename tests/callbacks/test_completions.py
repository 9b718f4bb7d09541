"""The table of sample completions."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_msrl.callbacks import CompletionTable
from lit_msrl.callbacks.completions import table
from lit_msrl.prompts import parse, render
from lit_msrl.rollout import Rollout
from lit_msrl.types import PreferenceExample
from tests.conftest import tiny_internvl
from tests.stages.test_rlvr import Uneven, data, module, trainer


def rollout() -> Rollout:
    questions = ("2+2?", "a|b\n<b>`3`</b>?")
    examples = [PreferenceExample(q, "text", q, 1, candidates=("4", "5")) for q in questions]
    orders = (False, True)
    prompts = [render(e, style="compact", swapped=o) for e, o in zip(examples, orders, strict=True)]
    texts = ["one", "two", "<think>3|4</think>\n<answer>B</answer>", "four `x`"]
    return Rollout(
        prompts=prompts,
        batch=None,
        completion_ids=torch.zeros(4, 1),
        completion_mask=torch.ones(4, 1, dtype=torch.bool),
        group_size=2,
        texts=texts,
        judgements=[parse(text, ("think", "answer")) for text in texts],
        rewards=torch.tensor([1.0, 0.25, 0.5, 0.0]),
        reward_parts={
            "accuracy": torch.tensor([1.0, 0.0, 1.0, 0.0]),
            "overlong": torch.tensor([0.0, 0.0, -0.5, 0.0]),
        },
        advantages=torch.tensor([0.5, -0.5, 1.25, -1.25]),
        truncated=torch.zeros(4, dtype=torch.bool),
        normalizer=torch.tensor(4.0),
    )


def test_a_group_as_a_table() -> None:
    question, _, label, _, *lines = table(rollout()).split("\n")
    assert "2+2?" in question
    assert label == "label **A**"
    assert lines == [
        "| reward | accuracy | overlong | advantage | completion |",
        "|--|--|--|--|--|",
        "| 1.00 | 1.00 | 0.00 | +0.50 | one |",
        "| 0.25 | 0.00 | 0.00 | -0.50 | two |",
    ]


def test_nothing_in_the_text_breaks_the_table() -> None:
    """No cell ends early, no tag acts, no code span closes."""
    question, _, label, _, _, _, *rows = table(rollout(), group=1).split("\n")
    assert label == "label **B**"
    assert rows == [
        "| 0.50 | 1.00 | -0.50 | +1.25 "
        "| &lt;think&gt;3&#124;4&lt;/think&gt;<br>&lt;answer&gt;B&lt;/answer&gt; |",
        "| 0.00 | 0.00 | 0.00 | -1.25 | four 'x' |",
    ]
    assert question.count("`") == 2
    assert "a&#124;b<br>&lt;b&gt;'3'&lt;/b&gt;?" in question


def written(folder: Path) -> list[int]:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    tag = "completions/text_summary"
    return [event.step for event in events.Tensors(tag)] if tag in events.Tags()["tensors"] else []


def test_a_table_every_so_many_steps(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="run", version=0)
    table = CompletionTable(every_n_steps=2)
    run = trainer(tmp_path, max_steps=3, logger=logger, log_every_n_steps=1, callbacks=[table])
    run.fit(module(tiny_internvl(seed=1), reward=Uneven()), data())
    logger.finalize("success")
    assert written(Path(logger.log_dir)) == [1, 3]
