"""What judgements earn."""

import time
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch.testing import assert_close

from lit_msrl.prompts import Judgement, JudgingPrompt, parse, render
from lit_msrl.rewards import ConsistencyReward, Reward, RewardSum, parse_leniently
from lit_msrl.types import PreferenceExample

TEXT = ("think", "answer")


def text_prompt(winner: Any = 1, name: str = "t1") -> JudgingPrompt:
    example = PreferenceExample(name, "text", "2+2?", winner, candidates=("4", "5"), source="sums")
    return render(example, swapped=False)


def image_prompt() -> JudgingPrompt:
    example = PreferenceExample(
        "i1", "image understanding", "what?", 2, candidates=("a dog", "a cat"), captions=("a cat",)
    )
    return render(example, view="caption", swapped=False)


GOOD = "<think>why</think><answer>A</answer>"
TYPED = "<type>image understanding</type><think>why</think><answer>B</answer>"


def test_the_sum_and_its_parts() -> None:
    # group of 2 for the text prompt (label A), then of 2 for the picture (label B)
    prompts, reward = [text_prompt(), image_prompt()], RewardSum()
    texts = [
        GOOD,
        "<answer>B</answer>",
        TYPED,
        TYPED.replace("understanding", "generation").replace("B", "A"),
    ]
    scores = reward(reward.read(texts, prompts), prompts)
    assert_close(scores.parts["accuracy"], torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert_close(scores.parts["format"], torch.tensor([1.0, 0.0, 1.0, 1.0]))
    assert_close(scores.parts["task"], torch.tensor([0.0, 0.0, 1.0, 0.0]))
    assert_close(scores.total, torch.tensor([2.0, 0.0, 2.2, 1.0]))


def test_a_type_nobody_asked_for_earns_nothing() -> None:
    reward = RewardSum()
    assert (
        reward(reward.read(["<type>text</type>" + GOOD], [text_prompt()]), [text_prompt()]).parts["task"] == 0
    )


def test_weights() -> None:
    reward, prompts = RewardSum(accuracy=2.0, format=0.5, task=3.0), [image_prompt()]
    assert reward(reward.read([TYPED], prompts), prompts).total.item() == 5.5


def test_no_label_is_an_error_that_names_the_example() -> None:
    prompts, reward = [text_prompt(), text_prompt("tie", name="t7")], RewardSum()
    judgements = reward.read([GOOD, GOOD], prompts)
    with pytest.raises(ValueError, match=r"^example 't7' of sums has no label \(winner: 'tie'\); .*$"):
        reward(judgements, prompts)


def test_broken_groups_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 completions are not whole groups of 2 prompts"):
        RewardSum().read([GOOD] * 3, [text_prompt(), text_prompt()])


class BrevityReward(Reward):
    """1 for short reasoning. Stands for a reward that a user adds."""

    name = "brevity"

    def __init__(self, weight: float = 1.0, longest: int = 10) -> None:
        super().__init__(weight)
        self.longest = longest

    def score(self, judgement: Judgement, prompt: JudgingPrompt) -> float:
        return float(len(judgement.sections.get("think", "")) <= self.longest)


def test_a_further_reward_joins_the_sum() -> None:
    reward, prompts = RewardSum(others=[BrevityReward(0.5, longest=2)]), [text_prompt()]
    scores = reward(reward.read([GOOD, GOOD.replace("why", "so")], prompts), prompts)
    assert_close(scores.parts["brevity"], torch.tensor([0.0, 1.0]))
    assert_close(scores.total, torch.tensor([2.0, 2.5]))


def test_two_rewards_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="different names"):
        RewardSum(others=[BrevityReward(), BrevityReward()])


class TestLenient:
    @pytest.mark.parametrize(
        ("text", "answer", "well_formed"),
        [
            (GOOD, "A", True),
            ("<THINK>is it <Answer> b </ANSWER>?</think>", "B", True),  # inside think, any case
            ("<answer>A</answer><answer>B</answer> and <think>x</think>", "A", True),  # the first, any order
            (" a ", "A", False),  # no tag: the whole text
            ("<answer></answer>B", None, False),  # an empty answer: the whole text, tags and all
            ("Answer: B.", None, False),
            ("</answer><answer>A", None, False),
        ],
    )
    def test_reads_as_the_public_scripts_do(self, text: str, answer: str | None, well_formed: bool) -> None:
        read = parse_leniently(text, TEXT)
        assert (read.answer, read.well_formed) == (answer, well_formed)

    @pytest.mark.parametrize(
        "text", ["x <type> Image_ Understanding</type>", "image-understanding", " IMAGE  UNDERSTANDING"]
    )
    def test_type(self, text: str) -> None:
        assert parse_leniently(text, TEXT).type == "image understanding"

    def test_the_reference_preset_can_be_hacked_and_the_default_cannot(self) -> None:
        hack, prompts = "<think><answer>A</answer></think> Really B.", [text_prompt()]
        for reward, total in [(RewardSum.reference(), 1.2), (RewardSum(), 0.0)]:
            assert reward(reward.read([hack], prompts), prompts).total.item() == pytest.approx(total)

    def test_the_reference_weights(self) -> None:
        reward, prompts = RewardSum.reference(), [image_prompt()]
        total = reward(reward.read([TYPED], prompts), prompts).total.item()
        assert total == pytest.approx(1.0 + 0.2 + 0.2 * 0.2)

    @pytest.mark.parametrize("garbage", ["<think>", "</think>", "<answer", "<type>x"])
    def test_linear_time(self, garbage: str) -> None:
        start = time.perf_counter()
        assert not parse_leniently(garbage * 20_000, TEXT).well_formed
        assert time.perf_counter() - start < 2


class TestConsistency:
    """An example in both orders (labels A and B), two completions each."""

    prompts = [text_prompt(), render(text_prompt().example, swapped=True)]

    def score(self, *verdicts: str) -> list[float]:
        reward = RewardSum(others=[ConsistencyReward()])
        texts = [f"<think>x</think><answer>{verdict}</answer>" for verdict in verdicts]
        return reward(reward.read(texts, self.prompts), self.prompts).parts["consistency"].tolist()

    def test_a_right_verdict_earns_the_share_of_right_ones_in_the_other_order(self) -> None:
        # right, right | right, wrong
        assert self.score("A", "A", "B", "A") == [0.5, 0.5, 1.0, 0.0]

    def test_always_the_same_letter_earns_nothing(self) -> None:
        assert self.score("A", "A", "A", "A") == [0.0] * 4

    def test_consistently_wrong_earns_nothing(self) -> None:
        assert self.score("B", "B", "A", "A") == [0.0] * 4

    def test_both_orders_must_be_there(self) -> None:
        reward = ConsistencyReward()
        with pytest.raises(ValueError, match="'t1' is shown in one order only; set model.both_orders"):
            reward([parse(GOOD, TEXT)], self.prompts[:1])


def test_strict_and_lenient_agree_on_a_good_judgement() -> None:
    strict, lenient = parse(TYPED, ("type", *TEXT)), parse_leniently(TYPED, ("type", *TEXT))
    assert (strict.well_formed, strict.answer, strict.type) == (
        lenient.well_formed,
        lenient.answer,
        lenient.type,
    )


class TestCommandLine:
    @pytest.fixture
    def parser(self) -> ArgumentParser:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--reward", type=RewardSum, default={"class_path": "lit_msrl.rewards.RewardSum"})
        return parser

    def weights(self, parser: ArgumentParser, *args: str) -> dict[str, float]:
        reward = parser.instantiate(parser.parse_args(list(args))).reward
        return {part.name: part.weight for part in reward.rewards}

    def test_one_weight(self, parser: ArgumentParser) -> None:
        assert self.weights(parser, "--reward.task=0.3") == {"accuracy": 1.0, "format": 1.0, "task": 0.3}

    def test_a_further_reward(self, parser: ArgumentParser) -> None:
        others = f'[{{"class_path": "{__name__}.BrevityReward", "init_args": {{"weight": 0.1}}}}]'
        assert self.weights(parser, f"--reward.others={others}")["brevity"] == 0.1

    def test_the_preset(self, parser: ArgumentParser) -> None:
        expected = {"accuracy": 1.0, "format": 0.2, "task": 0.04}
        assert self.weights(parser, "--reward=lit_msrl.rewards.RewardSum.reference") == expected
