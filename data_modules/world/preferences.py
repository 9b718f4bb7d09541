"""Preferences about scenes and facts: a question or a request, a true candidate and a false one."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Literal

from data_modules.world.drawing import draw
from data_modules.world.facts import alter_facts, sample_facts
from data_modules.world.scenes import COUNTS, Scene, Split, Thing, alter, sample_scene
from lit_msrl.prompts import shown_first
from lit_msrl.types import Media, PreferenceExample, Rationale, TaskType

Annotators = Literal["careful", "hasty"]
CONFIDENT = (
    "Certainly: {}",
    "Without any doubt: {}",
    "{} Everyone can see that.",
    "{} This is beyond question.",
)
HEDGED = ("Perhaps: {}", "I guess: {}", "{} But who knows.")
PLAIN = ("{}",)


def make_example(
    task: TaskType,
    index: int,
    *,
    seed: int,
    split: Split,
    annotators: Annotators = "careful",
    hard_share: float = 0.5,
) -> PreferenceExample:
    """The ``index``-th example of a task, the same on every machine.

    Args:
        task: Which of the five task types.
        index: Position in the unlimited stream.
        seed: Seed of the stream.
        split: Scenes and facts of other splits do not occur in it.
        annotators: ``careful`` ones reason rightly and surface cues (length, confident wording, position) say
            nothing; ``hasty`` ones let cues fool them, so their verdicts correlate with the cues.
        hard_share: Share of pairs that only binding tells apart.
    """
    identity = f"world/{split}/{task}/{seed}/{index}"
    rng = random.Random(identity)
    hard = rng.random() < hard_share
    identity += "/hard" if hard else "/easy"
    winner: Literal[1, 2] = 1 if rng.random() < 0.5 else 2
    build = {"text": _text, "understanding": _understanding, "generation": _generation}[task.split()[-1]]
    return build(rng, identity, task=task, split=split, annotators=annotators, hard=hard, winner=winner)


def _text(
    rng: random.Random,
    identity: str,
    *,
    split: Split,
    hard: bool,
    winner: Literal[1, 2],
    annotators: Annotators,
    task: TaskType,
):
    facts = sample_facts(rng, split=split)
    attribute = rng.choice(facts.attributes())
    false, right, wrong = alter_facts(rng, facts, attribute, hard=hard)
    if rng.random() < 0.5:
        prompt = f"Request: {right.claim(attribute)}."
        texts = (facts.caption(), false.caption())
        verbs = ("says", "wanted")
    else:
        prompt = f"Text: {facts.caption()}\nQuestion: {right.question(attribute)}"
        texts = (right.answer(attribute), wrong.answer(attribute))
        verbs = ("says", "it is")
    claims = right.claim(attribute), wrong.claim(attribute)
    return _finish(rng, identity, task, prompt, winner, texts, claims, verbs, annotators)


def _understanding(
    rng: random.Random,
    identity: str,
    *,
    split: Split,
    hard: bool,
    winner: Literal[1, 2],
    annotators: Annotators,
    task: TaskType,
):
    scene = sample_scene(
        rng, video=task.startswith("video"), split=split, things=2 if rng.random() < 0.7 else 3
    )
    attribute = rng.choice(scene.attributes())
    _, right, wrong = alter(rng, scene, attribute, hard=hard)
    prompt, texts = ask(right, attribute), (answer(right, attribute), answer(wrong, attribute))
    claims = right.claim(attribute), wrong.claim(attribute)
    extra = {"media": (_media(scene, identity),), "captions": (scene.caption(),)}
    return _finish(rng, identity, task, prompt, winner, texts, claims, ("says", "it is"), annotators, **extra)


def _generation(
    rng: random.Random,
    identity: str,
    *,
    split: Split,
    hard: bool,
    winner: Literal[1, 2],
    annotators: Annotators,
    task: TaskType,
):
    while True:
        scene = sample_scene(rng, video=task.startswith("video"), split=split)
        attribute = rng.choice(scene.attributes())
        # a swap of shapes is a swap of colours; what was asked for must be missing
        false, right, wrong = alter(rng, scene, attribute, hard=hard and attribute != "shape")
        if false.split() == split:
            break
    scenes = (scene, false) if winner == 1 else (false, scene)
    extra = {
        "media": tuple(_media(s, f"{identity}/{i}") for i, s in enumerate(scenes)),
        "captions": tuple(s.caption() for s in scenes),
    }
    claims = right.claim(attribute), wrong.claim(attribute)
    prompt = f"{claims[0]}."
    return _finish(
        rng, identity, task, prompt, winner, None, claims, ("shows", "wanted"), annotators, **extra
    )


def _finish(
    rng, identity, task, prompt, winner, texts, claims, verbs, annotators, **extra
) -> PreferenceExample:
    """Dress the candidates in surface cues, let the annotator judge, and put the winner in its place."""
    cued = rng.random() < (0.7 if annotators == "hasty" else 0.5)  # the cue is on the right candidate
    if texts is not None:
        styles = (CONFIDENT, rng.choice((HEDGED, PLAIN)))
        dressed = [
            rng.choice(style).format(text)
            for style, text in zip(styles if cued else styles[::-1], texts, strict=True)
        ]
        extra["candidates"] = tuple(dressed if winner == 1 else dressed[::-1])
    else:  # pictures have no wording; what is shown first is the cue
        cued = (winner == 2) == shown_first(identity)
    fooled = annotators == "hasty" and not cued and rng.random() < (0.55 if texts is not None else 0.3)
    first, second = (f"{verbs[0]} {claim}." for claim in claims)
    other: Literal[1, 2] = 2 if winner == 1 else 1
    preferred: Literal[1, 2] = other if fooled else winner
    rationale = Rationale(
        feedback=(first, second) if winner == 1 else (second, first),
        comparison=f"{verbs[1]} {claims[fooled]} {{{preferred}}} {verbs[0]}.",
        preferred=preferred,
    )
    return PreferenceExample(
        identity,
        task,
        prompt,
        winner,
        rationale=rationale,
        margin=1.0 if "/hard" in identity else 2.0,
        source="world",
        licence="Apache-2.0",
        **extra,
    )


def ask(thing: Thing, attribute: str) -> str:
    """A question about one thing, naming it by its shape, or by its colour if the shape is asked for.

    Example:
        >>> ask(Thing("two", "small", "red", "circle", "top left"), "color")
        'What color are the circles?'
    """
    verb = "is" if thing.count == "one" else "are"
    return {
        "color": f"What color {verb} the {thing.noun}?",
        "shape": f"What {verb} {thing.color}?",
        "size": f"What size {verb} the {thing.noun}?",
        "place": f"Where {verb} the {thing.noun}?",
        "motion": f"How does the {thing.noun} move?",
        "count": f"How many {replace(thing, count=COUNTS[-1]).noun}?",
    }[attribute]


def answer(thing: Thing, attribute: str) -> str:
    """A full sentence that answers `ask`."""
    verb = "is" if thing.count == "one" else "are"
    if attribute == "count":
        return f"There {verb} {thing.count}."
    return f"The {thing.noun} {verb} {thing.claim(attribute).removeprefix(thing.noun + ' ')}."


def _media(scene: Scene, identity: str) -> Media:
    return Media("video" if scene.is_video else "image", draw(scene, identity))
