"""Verifiable rewards: what a judgement earns.

To add one, write a subclass of ``Reward`` here and list it in YAML with its weight::

    model:
      reward:
        task: 0.2
        others:
        - class_path: lit_msrl.rewards.MyReward
          init_args: {weight: 0.1}
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_msrl.prompts import Judgement, JudgingPrompt, parse
from lit_msrl.types import Letter

Reading = Literal["strict", "lenient"]


class Reward(ABC):
    """Scores judgements, usually between 0 and 1.

    Args:
        weight: What the score is multiplied by in the sum. It is held here and nowhere else.
    """

    name: str = "reward"
    """The log key, ``reward/<name>``."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    @abstractmethod
    def score(self, judgement: Judgement, prompt: JudgingPrompt) -> float:
        """The unweighted score of one judgement of one prompt."""

    def __call__(self, judgements: Sequence[Judgement], prompts: Sequence[JudgingPrompt]) -> Tensor:
        """Score ``B`` judgements of ``B`` prompts (a prompt repeated for each of its completions).

        Returns:
            ``(B,)``, unweighted.
        """
        return torch.tensor(
            [self.score(j, p) for j, p in zip(judgements, prompts, strict=True)], dtype=torch.float32
        )


class AccuracyReward(Reward):
    """1 when the verdict is the label.

    A prompt without a label raises ``ValueError``: a 0 would teach the judge that both answers are wrong.
    """

    name = "accuracy"

    def score(self, judgement: Judgement, prompt: JudgingPrompt) -> float:
        """See the class."""
        if prompt.label is None:
            origin = f"example {prompt.example.id!r} of {prompt.example.source or 'unnamed source'}"
            raise ValueError(
                f"{origin} has no label (winner: {prompt.example.winner!r}); drop such examples before RL"
            )
        return float(judgement.answer == prompt.label)


class FormatReward(Reward):
    """1 when the completion is exactly the tags of the prompt's grammar."""

    name = "format"

    def score(self, judgement: Judgement, prompt: JudgingPrompt) -> float:
        """See the class."""
        return float(judgement.well_formed)


class TaskReward(Reward):
    """1 when ``<type>`` names the task; 0 for prompts whose grammar has no ``<type>``."""

    name = "task"

    def score(self, judgement: Judgement, prompt: JudgingPrompt) -> float:
        """See the class."""
        return float("type" in prompt.tags and judgement.type == prompt.task_type)


class ConsistencyReward(Reward):
    """For a right verdict the share of right ones in the other order, else 0 (after J1, arXiv:2505.10320).

    Who is right in one order only earns nothing here. Needs both orders of every pair: ``model.both_orders``.
    """

    name = "consistency"

    def score(self, judgement: Judgement, prompt: JudgingPrompt) -> float:
        """Whether the verdict is right in its own order."""
        return float(judgement.answer is not None and judgement.answer == prompt.label)

    def __call__(self, judgements: Sequence[Judgement], prompts: Sequence[JudgingPrompt]) -> Tensor:
        """See the class.

        Raises:
            ValueError: An example is shown in one order only.
        """
        right = super().__call__(judgements, prompts)
        verdicts: dict[tuple[str, str, bool], list[float]] = defaultdict(list)
        for prompt, each in zip(prompts, right.tolist(), strict=True):
            verdicts[prompt.example.source, prompt.example.id, prompt.swapped].append(each)
        others = [verdicts.get((p.example.source, p.example.id, not p.swapped)) for p in prompts]
        if None in others:
            alone = prompts[others.index(None)].example.id
            raise ValueError(
                f"ConsistencyReward: example {alone!r} is shown in one order only; set model.both_orders"
            )
        shares = [sum(other) / len(other) for other in others if other]
        return right * torch.tensor(shares, dtype=torch.float32)


class Scores(NamedTuple):
    """Rewards of ``B`` completions.

    Attributes:
        total: ``(B,)``, the weighted sum.
        parts: ``(B,)`` for each reward by name, unweighted; to be logged.
    """

    total: Tensor
    parts: dict[str, Tensor]


class RewardSum:
    """``r = accuracy * r_accuracy + format * r_format + task * r_task``, plus the weighted ``others``.

    The defaults are the paper's.

    Args:
        accuracy: Weight of the right verdict.
        format: Weight of the exact grammar.
        task: Weight of the right ``<type>``; earned only where the grammar has one (stages 2 and 3).
        reading: How completions are read: ``strict`` (the grammar) or ``lenient`` (the public scripts).
        others: Further rewards, each with its own weight.

    Raises:
        ValueError: Two rewards have the same name.
    """

    def __init__(
        self,
        accuracy: float = 1.0,
        format: float = 1.0,
        task: float = 0.2,
        *,
        reading: Reading = "strict",
        others: list[Reward] | None = None,
    ) -> None:
        self.rewards = [AccuracyReward(accuracy), FormatReward(format), TaskReward(task), *(others or [])]
        names = [reward.name for reward in self.rewards]
        if len(set(names)) < len(names):
            raise ValueError(
                f"rewards need different names, found {', '.join(names)}; set `name` in the new class"
            )
        self.reading: Reading = reading

    @classmethod
    def reference(cls) -> RewardSum:
        """The paper's public scripts: weights 1.0, 0.2, 0.2, the task's times 0.2 again; lenient reading.

        Example:
            >>> {reward.name: reward.weight for reward in RewardSum.reference().rewards}
            {'accuracy': 1.0, 'format': 0.2, 'task': 0.04}
        """
        return cls(accuracy=1.0, format=0.2, task=0.04, reading="lenient")

    def read(self, texts: Sequence[str], prompts: Sequence[JudgingPrompt]) -> list[Judgement]:
        """Parse ``B`` completions of ``P`` prompts, the ``G`` of a prompt adjacent."""
        reader = parse if self.reading == "strict" else parse_leniently
        repeated = _per_completion(prompts, len(texts))
        return [reader(text, prompt.tags) for text, prompt in zip(texts, repeated, strict=True)]

    def __call__(self, judgements: Sequence[Judgement], prompts: Sequence[JudgingPrompt]) -> Scores:
        """Score ``B`` judgements of ``P`` prompts, the ``G`` of a prompt adjacent.

        Example:
            >>> from lit_msrl.prompts import render
            >>> from lit_msrl.types import PreferenceExample
            >>> example = PreferenceExample("1", "text", "2+2?", 1, candidates=("4", "5"))
            >>> prompt = render(example, swapped=False)
            >>> texts = ["<think>4 is right.</think><answer>A</answer>", "<answer>A</answer>"]
            >>> reward = RewardSum()
            >>> reward(reward.read(texts, [prompt]), [prompt]).total
            tensor([2., 1.])
        """
        repeated = _per_completion(prompts, len(judgements))
        parts = {reward.name: reward(judgements, repeated) for reward in self.rewards}
        total = torch.stack([reward.weight * parts[reward.name] for reward in self.rewards]).sum(dim=0)
        return Scores(total, parts)


def parse_leniently(text: str, tags: tuple[str, ...]) -> Judgement:
    """Read a completion as the paper's public scripts do, to reproduce them; linear in the text's length.

    Well-formed: think and answer occur anywhere. Answer: the first ``<answer>``, even inside think, or else
    the whole text. Type: likewise. Tags in any case.

    Example:
        >>> parse_leniently("Is it <answer>a</answer>? <think></think>", ("think", "answer")).answer
        'A'
        >>> parse_leniently(" b ", ("think", "answer")).answer
        'B'
    """
    answer = (_first(text, "answer") or text).strip().upper()
    task = (_first(text, "type") or text).lower().replace("_", " ").replace("-", " ")
    well_formed = _first(text, "think") is not None and _first(text, "answer") is not None
    verdict: Letter | None = answer if answer in ("A", "B") else None  # type: ignore[assignment]
    return Judgement(well_formed, verdict, " ".join(task.split()), {})


def _first(text: str, tag: str) -> str | None:
    """The stripped content of the first ``<tag>…</tag>``, found without backtracking."""
    start = re.search(f"<{tag}>", text, re.IGNORECASE)
    stop = start and re.compile(f"</{tag}>", re.IGNORECASE).search(text, start.end())
    return text[start.end() : stop.start()].strip() if start and stop else None


def _per_completion(prompts: Sequence[JudgingPrompt], count: int) -> list[JudgingPrompt]:
    if not prompts or count % len(prompts):
        raise ValueError(f"{count} completions are not whole groups of {len(prompts)} prompts")
    return [prompt for prompt in prompts for _ in range(count // len(prompts))]
