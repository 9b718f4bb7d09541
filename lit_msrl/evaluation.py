"""A judge measured: its verdicts on examples, in both orders, once or several times, as records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from tqdm import tqdm

from lit_msrl import sharded
from lit_msrl.engines import RolloutEngine, Sampling
from lit_msrl.judges import Answer, Judge, PolicyJudge
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import JudgingPrompt, Style, View, parse, render, shown_first
from lit_msrl.records import JudgementRecord, Order
from lit_msrl.types import PreferenceExample
from lit_msrl.voting import decided, rounds

Decode = Callable[[PreferenceExample], PreferenceExample]


@dataclass(frozen=True)
class Plan:
    """What is asked of a judge.

    Attributes:
        view: Evidence as captions or pixels.
        style: Prompt wording.
        both_orders: Every example as AB and as BA; else in the order of its seeded hash.
        votes: Samples of each question.
        early_stop: Stop sampling an example when more than half of all its votes agree.
        batch_size: Examples at a time.
    """

    view: View = "visual"
    style: Style = "full"
    both_orders: bool = True
    votes: int = 1
    early_stop: bool = False
    batch_size: int = 8

    def __post_init__(self) -> None:
        if min(self.votes, self.batch_size) < 1:
            raise ValueError(f"votes ({self.votes}) and batch_size ({self.batch_size}) must be at least 1")

    def sides(self, example: PreferenceExample) -> list[bool]:
        """The orders an example is shown in: whether candidate 2 comes first."""
        return [False, True] if self.both_orders else [shown_first(example.id)]

    @property
    def judgements(self) -> int:
        """Judgements of each example, if nothing stops early."""
        return self.votes * (2 if self.both_orders else 1)


def examine(
    judge: Judge,
    examples: Sequence[PreferenceExample],
    plan: Plan,
    *,
    decode: Decode,
    done: Sequence[JudgementRecord] = (),
) -> Iterator[JudgementRecord]:
    """Ask what the plan says and has not been asked yet.

    Args:
        judge: Who judges.
        examples: What is judged, ties too; media need not be decoded.
        plan: What is asked.
        decode: Decodes the media of an example; only called for what is asked.
        done: Records of an earlier run that was broken off.

    Yields:
        Records, each when it is there.
    """
    known = {(r.id, r.order, r.sample): r for r in done}
    for batch in _batches(examples, plan.batch_size):
        decoded: dict[str, PreferenceExample] = {}
        for samples in rounds(plan.votes, early_stop=plan.early_stop):
            asked = [
                (example, swapped)
                for example in batch
                if not (plan.early_stop and _settled(example, plan, known))
                for swapped in plan.sides(example)
                if any((example.id, _order(swapped), sample) not in known for sample in samples)
            ]
            if not asked:
                continue
            decoded |= {e.id: decode(e) for e in {e.id: e for e, _ in asked if e.id not in decoded}.values()}
            prompts = [
                render(decoded[example.id], view=plan.view, style=plan.style, swapped=swapped)
                for example, swapped in asked
            ]
            for answer in judge.answers(prompts, samples):
                record = _record(prompts[answer.prompt], answer)
                key = (record.id, record.order, record.sample)
                if key not in known:
                    known[key] = record
                    yield record


def _settled(
    example: PreferenceExample, plan: Plan, known: dict[tuple[str, str, int], JudgementRecord]
) -> bool:
    keys = [(example.id, _order(side), s) for side in plan.sides(example) for s in range(plan.votes)]
    return decided([known[key].preferred for key in keys if key in known], plan.judgements)


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
    clear = [example for example in examples if example.winner != "tie"]
    plan = Plan(view, style, both_orders, batch_size=max(1, batch_size // (1 + both_orders)))
    witness = PolicyJudge(policy, engine, max_completion=max_completion)
    with tqdm(total=len(clear) * plan.judgements, desc=title, leave=False) as bar:
        found = []
        for record in examine(witness, clear, plan, decode=lambda example: example):
            found.append(record)
            bar.update()
    return found


@torch.no_grad()
def pass_rates(
    policy: GenerativeRMPolicy,
    engine: RolloutEngine,
    examples: Sequence[PreferenceExample],
    *,
    view: View,
    style: Style,
    sampling: Sampling,
    seed: int,
) -> list[float]:
    """How often the judge is right about each example, shown as in training.

    Args:
        policy: The judge.
        engine: What samples.
        examples: With decoded media and a winner.
        view: Evidence as captions or pixels.
        style: Prompt wording.
        sampling: How many judgements per example, and how they are drawn.
        seed: Seed of the draw.

    Returns:
        For each example the share of right verdicts; one that cannot be read is wrong.
    """
    prompts = [render(example, view=view, style=style) for example in examples]
    drawn = engine.generate(policy, prompts, policy.encode(prompts), sampling=sampling, seed=seed)
    texts = iter(policy.decode(drawn.ids, drawn.mask))
    verdicts = [[parse(next(texts), p.tags).answer for _ in range(sampling.group_size)] for p in prompts]
    return [each.count(p.label) / len(each) for each, p in zip(verdicts, prompts, strict=True)]


def load_weights(policy: GenerativeRMPolicy, checkpoint: Path) -> str:
    """Load the policy of a stage's checkpoint; returns the stage's name.

    Raises:
        ValueError: The file is no checkpoint of ours, or of another model.
    """
    content = read_checkpoint(checkpoint)
    take_weights(policy, content, checkpoint)
    return content["stage"]


def take_weights(policy: GenerativeRMPolicy, content: dict[str, Any], checkpoint: Path) -> None:
    """Load the policy of what ``read_checkpoint`` has read.

    Raises:
        ValueError: It is of another model.
    """
    weights = {
        k.removeprefix("policy."): v for k, v in content["state_dict"].items() if k.startswith("policy.")
    }
    try:
        policy.load(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{checkpoint} holds another model than the policy: {str(error).splitlines()[1].strip()}"
        ) from error


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """What a stage's checkpoint holds: a file, or a folder that several ranks wrote (without the optimizer).

    Raises:
        ValueError: It is no checkpoint of ours.
    """
    if sharded.is_sharded(checkpoint):
        return sharded.load(checkpoint)
    if not checkpoint.is_file():
        raise ValueError(f"{checkpoint}: no such checkpoint")
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        held = {"stage", "state_dict"} <= content.keys()
    except (UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
        raise ValueError(f"{checkpoint} is not a checkpoint of a stage ({type(error).__name__})") from error
    if not held:
        raise ValueError(f"{checkpoint} is not a checkpoint of a stage (it lacks the stage or the weights)")
    return content


def _record(prompt: JudgingPrompt, answer: Answer) -> JudgementRecord:
    judgement = parse(answer.text, prompt.tags)
    preferred = None if judgement.answer is None else 1 if (judgement.answer == "A") != prompt.swapped else 2
    return JudgementRecord(
        id=prompt.example.id,
        task_type=prompt.task_type,
        order=_order(prompt.swapped),
        sample=answer.sample,
        winner=prompt.example.winner,
        preferred=preferred,
        well_formed=judgement.well_formed,
        confidence=None if preferred is None else answer.confidence,
        text=answer.text,
        tokens=answer.tokens,
    )


def _order(swapped: bool) -> Order:
    return "BA" if swapped else "AB"


def _batches(examples: Sequence[PreferenceExample], size: int) -> Iterator[list[PreferenceExample]]:
    left = iter(examples)
    while batch := list(islice(left, size)):
        yield batch
