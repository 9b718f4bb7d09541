"""What the embedded base model is raised on: reading, seeing and the answer format; no preference labels.

A document is a conversation whose assistant turns are learned. None says which of two candidates is better:
the few documents in the form of a judgement end in a coin toss, so that the base writes the format and is
at chance.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from data_modules.world.drawing import draw
from data_modules.world.facts import Facts, Record, alter_facts, sample_facts
from data_modules.world.preferences import ask, make_example
from data_modules.world.scenes import Scene, alter, sample_scene
from lit_msrl.prompts import MEDIA_MARK, JudgingPrompt, View, reasoning, render, write
from lit_msrl.types import TASK_TYPES, Media

Lessons = Literal["reading", "all"]
KINDS: dict[Lessons, dict[str, int]] = {  # of document, and how often
    "reading": {"repeat": 10, "tell": 20, "read": 20, "read_pair": 30, "who": 10, "copy": 10},
    "all": {
        "repeat": 1, "tell": 2, "read": 6, "read_pair": 22, "who": 8, "copy": 18,
        "see": 16, "see_pair": 12, "describe": 6, "format": 9,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Document:
    """A conversation.

    Attributes:
        media: Pictures and clips, each marked in the first user turn.
        turns: Pairs of user text and assistant text.
    """

    media: tuple[Media, ...]
    turns: tuple[tuple[str, str], ...]


def make_document(index: int, *, seed: int, lessons: Lessons = "all") -> Document:
    """The ``index``-th document, the same on every machine; scenes and facts of the train split only."""
    rng = random.Random(f"pretraining/{seed}/{index}")
    kind = rng.choices(list(KINDS[lessons]), list(KINDS[lessons].values()))[0]
    return WRITERS[kind](rng, f"{seed}/{index}")


def _see(rng: random.Random, name: str) -> Document:
    scene = _scene(rng)
    turns = [("Describe it.", scene.caption())] if rng.random() < 0.8 else []
    turns += _questions(rng, scene, 3 - len(turns))
    return Document((_draw(scene, name),), _open(f"Media: {MEDIA_MARK}\n", turns))


def _see_pair(rng: random.Random, name: str) -> Document:
    video = rng.random() < 0.5
    scenes = [sample_scene(rng, video=video, split="train") for _ in range(2)]
    media = tuple(_draw(scene, f"{name}/{i}") for i, scene in enumerate(scenes))
    told = f"A: {scenes[0].caption()} B: {scenes[1].caption()}"
    return Document(media, _open(f"A: {MEDIA_MARK}\nB: {MEDIA_MARK}\n", [("Describe it.", told)]))


def _read(rng: random.Random, name: str) -> Document:
    content = (
        sample_facts(rng, split="train", records=rng.choice((2, 2, 3))) if rng.random() < 0.6 else _scene(rng)
    )
    word = rng.choice("AB") if rng.random() < 0.3 else "Text" if isinstance(content, Facts) else "Caption"
    return Document((), _open(f"{word}: {content.caption()}\n", _questions(rng, content, 6)))


def _read_pair(rng: random.Random, name: str) -> Document:
    """Two texts that differ in one thing or in all; questions about either."""
    first = _content(rng)
    second = _content(rng) if rng.random() < 0.3 else _altered(rng, first)
    texts = [first, second] if rng.random() < 0.5 else [second, first]
    turns = [
        (f"{letter}: {question}", answer)
        for letter, content in zip("AB", texts, strict=True)
        for question, answer in _questions(rng, content, 4)
    ]
    rng.shuffle(turns)
    return Document((), _open(f"A: {texts[0].caption()}\nB: {texts[1].caption()}\n", turns))


def _altered(rng: random.Random, content: Scene | Facts) -> Scene | Facts:
    attribute, hard = rng.choice(content.attributes()), rng.random() < 0.5
    change = alter_facts if isinstance(content, Facts) else alter
    return change(rng, content, attribute, hard=hard)[0]  # type: ignore[arg-type]


def _repeat(rng: random.Random, name: str) -> Document:
    """A text said again: nearly every word is found by looking up the one before."""
    content = _content(rng)
    return Document((), ((f"Text: {content.caption()}\nRepeat it.", f" {content.caption()}"),))


def _tell(rng: random.Random, name: str) -> Document:
    """Everything said of one thing, asked for by its name."""
    content = _content(rng)
    things = rng.sample(content.things, len(content.things))
    names = [thing.subject if isinstance(thing, Record) else thing.noun for thing in things]
    turns = [(f"Tell of {noun}", f" {thing.phrase()}") for noun, thing in zip(names, things, strict=True)]
    return Document((), _open(f"Text: {content.caption()}\n", turns))


def _content(rng: random.Random) -> Scene | Facts:
    return (
        sample_facts(rng, split="train", records=rng.choice((2, 2, 3))) if rng.random() < 0.6 else _scene(rng)
    )


def _copy(rng: random.Random, name: str) -> Document:
    """What does each candidate claim, and who claims it?"""
    prompt = render(_example(rng, name, pictures=False), view="caption", style="compact")
    return Document((), _open(prompt.text.split("\nJudge:")[0] + "\n", _claims(rng, prompt)))


def _who(rng: random.Random, name: str) -> Document:
    """The same of several pairs of candidates that are not shown."""
    turns = []
    for i in range(4):
        prompt = render(_example(rng, f"{name}/{i}", pictures=False), view="caption", style="compact")
        (_, feedback), (question, told) = _claims(rng, prompt)
        turns.append((f"{feedback}\n{question}", told))
    return Document((), tuple(turns))


def _claims(rng: random.Random, prompt: JudgingPrompt) -> list[tuple[str, str]]:
    feedback = reasoning(prompt)[0].removeprefix("Feedback: ").split(" Comparison:")[0]
    said = rng.choice("AB")
    verb, claim = feedback.removesuffix(".").removeprefix("A ").split(". B ")[said == "B"].split(" ", 1)
    return [("Feedback:", f" {feedback}"), ("Who?", f" {claim} {said} {verb}.")]


def _describe(rng: random.Random, name: str) -> Document:
    """Say what kind of material this is and what it shows, in the tags that are asked for."""
    task = rng.choice(TASK_TYPES[1:])
    prompt = render(make_example(task, rng.randrange(10**9), seed=-1, split="train"), style="compact")
    tags = rng.choice((("type",), ("caption",), ("type", "caption")))
    text = prompt.text.split("Judge:")[0] + "Describe: " + "".join(f"<{tag}>" for tag in tags)
    judgement = write(prompt, think="", answer="")
    told = "".join(
        judgement[judgement.index(f"<{t}>") : judgement.index(f"</{t}>")] + f"</{t}>" for t in tags
    )
    return Document(prompt.media, ((text, told),))


def _format(rng: random.Random, name: str) -> Document:
    """The form of a judgement, its verdict a coin toss."""
    view: View = rng.choice(("caption", "visual"))
    prompt = render(_example(rng, name, pictures=view == "visual"), view=view, style="compact")
    feedback = reasoning(prompt)[0].split(" Comparison:")[0]
    verdict = rng.choice("AB")
    judgement = write(prompt, think=f"{feedback} Conclusion: {verdict} is better.", answer=verdict)
    return Document(prompt.media, ((prompt.text, judgement),))


def _example(rng: random.Random, name: str, *, pictures: bool):
    task = rng.choice(TASK_TYPES[1:] if pictures else ("text", "text", "text", *TASK_TYPES))
    return make_example(task, rng.randrange(10**9), seed=-1, split="train", annotators="hasty")


def _questions(rng: random.Random, content: Scene | Facts, count: int) -> list[tuple[str, str]]:
    pairs = [
        (thing, attribute) for thing in content.things for attribute in dict.fromkeys(content.attributes())
    ]
    turns = []
    for thing, attribute in rng.sample(pairs, min(count, len(pairs))):
        question = thing.question(attribute) if isinstance(thing, Record) else ask(thing, attribute)
        turns.append((question, f"it is {thing.claim(attribute)}."))
    return turns


def _open(context: str, turns: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Put the context before the first question."""
    return ((context + turns[0][0], turns[0][1]), *turns[1:])


def _scene(rng: random.Random) -> Scene:
    return sample_scene(rng, video=rng.random() < 0.5, split="train", things=2 if rng.random() < 0.7 else 3)


def _draw(scene: Scene, name: str) -> Media:
    return Media("video" if scene.is_video else "image", draw(scene, f"pretraining/{name}"))


WRITERS = {
    "repeat": _repeat,
    "tell": _tell,
    "read": _read,
    "read_pair": _read_pair,
    "who": _who,
    "copy": _copy,
    "see": _see,
    "see_pair": _see_pair,
    "describe": _describe,
    "format": _format,
}
