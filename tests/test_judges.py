"""Who judges: samples, seeds, the confidence of a verdict; and that only what is missing is asked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest
import torch

from lit_msrl.endpoint import Endpoint
from lit_msrl.engines import Completions, HFEngine
from lit_msrl.evaluation import Plan, examine
from lit_msrl.judges import Answer, EndpointJudge, Judge, PolicyJudge
from lit_msrl.prompts import JudgingPrompt, write
from lit_msrl.types import PreferenceExample
from tests.conftest import text_prompt, tiny_internvl
from tests.endpoint import refused, said, serving
from tests.fakes import ScriptedEngine

EXAMPLES = [PreferenceExample(f"e{i}", "text", "2+2?", 1, candidates=("4", "5")) for i in range(5)]


def verdict(prompt: JudgingPrompt, letter: str) -> str:
    return write(prompt, think="thus", answer=letter)


class Scripted(Judge):
    """Says what a function says, and remembers what it was asked."""

    def __init__(self, script) -> None:
        self.script, self.asked = script, []

    def answers(self, prompts: Sequence[JudgingPrompt], samples: range) -> Iterator[Answer]:
        for i in reversed(range(len(prompts))):
            for sample in samples:
                self.asked.append((prompts[i].example.id, prompts[i].swapped, sample))
                yield Answer(i, sample, verdict(prompts[i], self.script(prompts[i], sample)), None, 3)


def run(judge: Judge, plan: Plan, done=(), examples=EXAMPLES):
    return list(examine(judge, examples, plan, decode=lambda e: e, done=done))


def test_a_policys_samples_are_numbered_and_weighed():
    policy = tiny_internvl()
    prompts = [text_prompt("a"), text_prompt("b")]
    script = lambda p: [(verdict(p, letter), math.log(0.25)) for letter in "ABB"]  # noqa: E731
    judge = PolicyJudge(policy, ScriptedEngine(script), max_completion=9, temperature=1.0)
    found = list(judge.answers(prompts, range(4, 7)))
    assert [(a.prompt, a.sample) for a in found] == [(p, s) for p in (0, 1) for s in (4, 5, 6)]
    assert [a.text for a in found[:3]] == [verdict(prompts[0], letter) for letter in "ABB"]
    assert all(a.confidence == pytest.approx(0.25) for a in found)
    assert all(a.tokens == len(policy.tokenizer(a.text)["input_ids"]) + 1 for a in found)


def test_the_confidence_is_that_of_the_verdicts_token():
    policy = tiny_internvl()
    prompt = text_prompt("a")

    class Uneven(ScriptedEngine):
        def generate(self, *args, **options) -> Completions:
            drawn = super().generate(*args, **options)
            texts = [policy.tokenizer.decode([i]) for i in drawn.ids[0]]
            (place,) = [i for i, text in enumerate(texts) if text.strip(">< ") == "B"]
            logprobs = torch.full(drawn.logprobs.shape, -9.0)
            logprobs[0, place] = math.log(0.75)
            return Completions(drawn.ids, drawn.mask, logprobs)

    engine = Uneven(lambda p: [(write(p, think="so", answer="B"), 0.0)])
    (found,) = PolicyJudge(policy, engine, max_completion=9).answers([prompt], range(1))
    assert found.confidence == pytest.approx(0.75)


def test_a_text_without_a_verdict_has_no_confidence():
    engine = ScriptedEngine(lambda p: [("what a question", -1.0)])
    (found,) = PolicyJudge(tiny_internvl(), engine, max_completion=9).answers([text_prompt("a")], range(1))
    assert found.confidence is None


def test_draws_depend_on_what_is_asked_and_on_the_seed():
    policy, prompts = tiny_internvl(), [text_prompt("a"), text_prompt("b")]

    def drawn(seed: int, samples: range = range(2)) -> list[str]:
        judge = PolicyJudge(policy, HFEngine(), max_completion=6, temperature=1.0, seed=seed)
        return [a.text for a in judge.answers(prompts, samples)]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert drawn(0) != drawn(0, range(2, 4))


def test_an_endpoint_judges_what_it_is_shown():
    with serving(lambda request: said("<think>so</think><answer>B</answer>", tokens=4)) as server:
        judge = EndpointJudge(Endpoint(server.url, "m"), max_completion=9)
        found = sorted(run(judge, Plan(votes=2, batch_size=3)), key=lambda r: (r.id, r.order, r.sample))
    assert [(r.id, r.order, r.sample) for r in found] == [
        (e.id, o, s) for e in EXAMPLES for o in ("AB", "BA") for s in (0, 1)
    ]
    assert [r.preferred for r in found[:4]] == [2, 2, 1, 1]
    assert all((r.tokens, r.confidence) == (4, None) for r in found)
    assert len(server.requests) == 20


def confidences(answer) -> list[float | None]:
    with serving(answer) as server:
        judge = EndpointJudge(Endpoint(server.url, "m", concurrency=1, retries=0), max_completion=9)
        return [answer.confidence for answer in judge.answers([text_prompt("a")], range(2))]


def test_an_endpoints_confidence_is_that_of_the_verdicts_token():
    """As a policy's is: the last letter before the closing tag, however the server cuts it into tokens."""
    before = [("A</answer>", math.log(0.9)), ("no:", -1.0), ("<answer>", -2.0)]
    text = "A</answer>no:<answer>B</answer>"
    for end in ([("B", math.log(0.75)), ("</", -3.0), ("answer>", -4.0)], [("B</answer>", math.log(0.75))]):
        found = confidences(lambda request, end=end: said(text, scored=before + end))
        assert found == [pytest.approx(0.75)] * 2
    assert confidences(lambda request: said("B?", scored=[("B", -1.0), ("?", -1.0)])) == [None, None]


def test_an_endpoint_that_tells_no_probabilities_gives_no_confidence():
    verdict = "<answer>B</answer>"
    assert confidences(lambda request: said(verdict)) == [None, None]
    assert confidences(lambda request: said(verdict, scored=[])) == [None, None]
    asked = []

    def refuses(request):
        asked.append("logprobs" in request)
        return refused(400, "not with this model", param="logprobs") if asked[-1] else said(verdict)

    assert confidences(refuses) == [None, None]
    assert asked == [True, False, False], "refused once, it is not asked for again"


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_everything_is_asked_once(batch_size):
    judge = Scripted(lambda prompt, sample: "A")
    found = run(judge, Plan(votes=3, batch_size=batch_size))
    assert len(found) == len(set(judge.asked)) == len(judge.asked) == 5 * 2 * 3
    one = Scripted(lambda prompt, sample: "A")
    assert len(run(one, Plan(both_orders=False, batch_size=batch_size))) == 5
    assert {side for _, side, _ in one.asked} == {False, True}, "the hash gives both sides"


def test_what_was_judged_is_not_asked_again():
    plan = Plan(votes=2, batch_size=2)
    whole = run(Scripted(lambda prompt, sample: "A"), plan)
    for cut in (0, 1, 7, 12, 20):
        judge = Scripted(lambda prompt, sample: "A")
        rest = run(judge, plan, done=whole[:cut])
        keys = sorted((r.id, r.order, r.sample) for r in whole[:cut] + rest)
        assert keys == sorted((r.id, r.order, r.sample) for r in whole)
        assert cut < 20 or not judge.asked


def test_a_decided_vote_is_asked_no_further():
    def script(prompt: JudgingPrompt, sample: int) -> str:
        right = "B" if prompt.swapped else "A"
        wrong = "A" if prompt.swapped else "B"
        return wrong if prompt.example.id == "e0" and sample % 2 else right

    judge = Scripted(script)
    found = run(judge, Plan(votes=5, early_stop=True, batch_size=5))
    asked = {e.id: sum(name == e.id for name, _, _ in judge.asked) for e in EXAMPLES}
    # ten votes; the first round of three samples in both orders is six. e0 has 4 of 6, 4 of 8, 6 of 10.
    assert asked == {"e0": 10, "e1": 6, "e2": 6, "e3": 6, "e4": 6}
    again = Scripted(script)
    assert run(again, Plan(votes=5, early_stop=True, batch_size=5), done=found) == []
    assert not again.asked


def test_ties_are_judged_too():
    tie = PreferenceExample("t", "text", "2+2?", "tie", candidates=("4", "four"))
    found = run(Scripted(lambda prompt, sample: "A"), Plan(), examples=[tie])
    assert [(r.winner, r.preferred, r.correct) for r in found] == [("tie", 2, False), ("tie", 1, False)]


def test_a_plan_that_asks_nothing_is_refused():
    with pytest.raises(ValueError, match=r"votes \(0\)"):
        Plan(votes=0)
