"""A judge measured: greedy verdicts on examples, in both orders, as records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError

import torch
from tqdm import tqdm

from lit_msrl.engines import RolloutEngine, Sampling
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import JudgingPrompt, Style, View, parse, render
from lit_msrl.records import JudgementRecord
from lit_msrl.types import PreferenceExample


def judge(
    policy: GenerativeRMPolicy,
    engine: RolloutEngine,
    examples: Sequence[PreferenceExample],
    *,
    view: View,
    style: Style,
    max_completion: int,
    both_orders: bool = True,
    batch_size: int = 64,
    title: str = "judging",
) -> list[JudgementRecord]:
    """Greedy judgements of examples that have a winner.

    Args:
        policy: The judge.
        engine: What samples.
        examples: With decoded media; ties are not judged.
        view: Evidence as captions or pixels.
        style: Prompt wording.
        max_completion: Longest completion in tokens.
        both_orders: Judge every example as AB and as BA; else in the order of its seeded hash.
        batch_size: Judgements at a time.
        title: Shown beside the progress bar.

    Returns:
        Records in the order of the examples, AB before BA.
    """
    orders: tuple[bool | None, ...] = (False, True) if both_orders else (None,)
    decided = [example for example in examples if example.winner != "tie"]
    prompts = [render(e, view=view, style=style, swapped=swapped) for e in decided for swapped in orders]
    sampling = Sampling(group_size=1, max_length=max_completion, temperature=0.0)
    records: list[JudgementRecord] = []
    with tqdm(total=len(prompts), desc=title, leave=False) as bar, torch.no_grad():
        for batch in _batches(prompts, batch_size):
            drawn = engine.generate(policy, batch, policy.encode(batch), sampling=sampling, seed=0)
            texts = policy.decode(drawn.ids, drawn.mask)
            records += [_record(prompt, text) for prompt, text in zip(batch, texts, strict=True)]
            bar.update(len(batch))
    return records


def load_weights(policy: GenerativeRMPolicy, checkpoint: Path) -> str:
    """Load the policy of a stage's checkpoint; returns the stage's name.

    Raises:
        ValueError: The file is no checkpoint of ours, or of another model.
    """
    if not checkpoint.is_file():
        raise ValueError(f"{checkpoint}: no such checkpoint")
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        stage = content["stage"]
    except (UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
        raise ValueError(f"{checkpoint} is not a checkpoint of a stage ({type(error).__name__})") from error
    weights = {
        k.removeprefix("policy."): v for k, v in content["state_dict"].items() if k.startswith("policy.")
    }
    try:
        policy.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{checkpoint} holds another model than the policy: {str(error).splitlines()[1].strip()}"
        ) from error
    return stage


def _record(prompt: JudgingPrompt, text: str) -> JudgementRecord:
    judgement = parse(text, prompt.tags)
    preferred = None if judgement.answer is None else 1 if (judgement.answer == "A") != prompt.swapped else 2
    winner = prompt.example.winner
    assert winner != "tie"
    return JudgementRecord(
        id=prompt.example.id,
        task_type=prompt.task_type,
        order="BA" if prompt.swapped else "AB",
        sample=0,
        winner=winner,
        preferred=preferred,
        well_formed=judgement.well_formed,
        confidence=None,
        text=text,
    )


def _batches(prompts: Sequence[JudgingPrompt], size: int) -> Iterator[list[JudgingPrompt]]:
    left = iter(prompts)
    while batch := list(islice(left, size)):
        yield batch
