"""The drawn world: repeatable, divided, true to its captions, and as biased as it says."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from scipy import ndimage

from data_modules.world import pretraining
from data_modules.world.drawing import RGB, draw
from data_modules.world.facts import DOMAINS, alter_facts, sample_facts
from data_modules.world.preferences import CONFIDENT, HEDGED, Annotators, make_example
from data_modules.world.pretraining import Document, make_document
from data_modules.world.scenes import COLORS, COUNTS, Scene, Split, alter, sample_scene, split_of
from data_modules.world.source import World
from lit_msrl.prompts import JudgingPrompt, render, shown_first
from lit_msrl.types import TASK_TYPES, PreferenceExample, TaskType

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
UNDERSTANDING: tuple[TaskType, ...] = ("image understanding", "video understanding")
GENERATION: tuple[TaskType, ...] = ("image generation", "video generation")


@cache
def examples(
    task: TaskType, count: int = 80, split: Split = "train", annotators: Annotators = "careful"
) -> list[PreferenceExample]:
    return [make_example(task, i, seed=0, split=split, annotators=annotators) for i in range(count)]


def within(found: int, count: int, share: float) -> bool:
    """Not further from what is expected than four standard deviations of a binomial."""
    return abs(found - count * share) <= 4 * (count * share * (1 - share)) ** 0.5


# ---- repeatable and divided --------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASK_TYPES)
def test_an_example_is_the_same_on_every_call(task: TaskType) -> None:
    again = make_example(task, 7, seed=0, split="train")
    assert again == examples(task)[7]
    assert [m.frames for m in again.media] == [m.frames for m in examples(task)[7].media]
    others = [
        make_example(task, 7, seed=1, split="train"),
        make_example(task, 7, seed=0, split="test"),
        make_example(task, 8, seed=0, split="train"),
    ]
    assert len({e.id for e in others} | {again.id}) == 4
    assert all(
        (e.prompt, e.candidates, e.captions) != (again.prompt, again.candidates, again.captions)
        for e in others
    )


def test_the_source_deals_tasks_in_turn() -> None:
    world = World(["text", "video generation"], size=4, split="test", seed=3)
    assert [row["example"] for row in world.dataset()] == [world.example(i) for i in range(4)]
    assert [world.example(i).task_type for i in range(3)] == ["text", "video generation", "text"]
    assert world.example(1) == make_example("video generation", 1, seed=3, split="test")


@pytest.mark.parametrize("task", TASK_TYPES)
def test_splits_share_no_caption(task: TaskType) -> None:
    """In generation that includes the false scenes."""
    told = {
        split: {caption for e in examples(task, 40, split) for caption in material(e)} for split in SPLITS
    }
    for split, captions in told.items():
        assert {split_of(caption) for caption in captions} == {split}
    assert sum(map(len, told.values())) == len(set().union(*told.values()))


def material(example: PreferenceExample) -> list[str]:
    """What an example is about: the captions, or the text of a text task."""
    if example.prompt.startswith("Request: ") and example.candidates and isinstance(example.winner, int):
        return [plain(example.candidates[example.winner - 1])]
    return list(example.captions) or [example.prompt.split(": ", 1)[1].split("\n")[0]]


def test_documents_are_of_the_train_split() -> None:
    for index in range(60):
        document = make_document(index, seed=0)
        found = re.findall(r"(?:^|\n)(?:Text|Caption): ([^:]*?\.)", document.turns[0][0])
        assert {split_of(text) for text in found} <= {"train"}


# ---- the winner is right -----------------------------------------------------------------------------------


class Told(NamedTuple):
    """A thing as its caption tells it."""

    count: str
    size: str
    color: str
    shape: str
    place: str
    motion: str


PHRASE = re.compile(
    r"(?P<shape>circle|triangle|cross|ring|bar)(?:e?s)? (?:(?P<count>one|two|three) (?P<size>small|large) )?"
    rf"(?P<color>{'|'.join(COLORS)}) (?P<place>(?:top|bottom) (?:left|right))"
    r"(?: (?P<motion>staying|moving \w+))?"
)


def things(caption: str) -> list[Told]:
    """A caption read by a grammar of our own."""
    parts = caption.removesuffix(".").split(", ")
    found = [PHRASE.fullmatch(part) for part in parts]
    assert all(found), caption
    return [Told(**match.groupdict(default="")) for match in found if match]


def plain(candidate: str) -> str:
    """A candidate without its confident or hedging wording."""
    for pattern in (*CONFIDENT, *HEDGED):
        before, after = pattern.split("{}")
        if candidate.startswith(before) and candidate.endswith(after):
            return candidate.removeprefix(before).removesuffix(after)
    return candidate


def true_of_scene(claim: str, prompt: str, caption: str) -> bool:
    fields = {
        "What color": "color",
        "What size": "size",
        "Where": "place",
        "How does": "motion",
        "How many": "count",
    }
    if asked := re.fullmatch(r"What (?:is|are) (\w+)\?", prompt):  # which shape has this colour?
        return next(thing for thing in things(caption) if thing.color == asked[1]).shape in claim
    field = next(name for words, name in fields.items() if prompt.startswith(words))
    thing = next(thing for thing in things(caption) if thing.shape in prompt)
    assert field == "count" or thing.shape in claim
    return claim.removesuffix(".").endswith(" " + getattr(thing, field))


@pytest.mark.parametrize("task", UNDERSTANDING)
def test_the_better_answer_is_true_of_the_scene_and_the_other_is_not(task: TaskType) -> None:
    for e in examples(task):
        assert e.candidates is not None
        truths = [true_of_scene(plain(text), e.prompt, e.captions[0]) for text in e.candidates]
        assert truths == [e.winner == 1, e.winner == 2], e


@pytest.mark.parametrize("task", GENERATION)
def test_the_better_picture_is_what_was_asked_for_and_the_other_is_not(task: TaskType) -> None:
    for e in examples(task):
        matches = [shows(caption, e.prompt) for caption in e.captions]
        assert matches == [e.winner == 1, e.winner == 2], e


def shows(caption: str, request: str) -> bool:
    """Whether the things of a caption are as a request such as ``circles red.`` wants them."""
    noun, value = request.removesuffix(".").split(" ", 1)
    return any(noun.startswith(thing.shape) and value in thing for thing in things(caption))


SUBJECTS = {subject for domain in DOMAINS for subject in domain.subjects}
WORDS = sorted({w for d in DOMAINS for words in d.values.values() for w in words}, key=len, reverse=True)


def true_of_text(claim: str, prompt: str) -> bool:
    if prompt.startswith("Request: "):
        subject, wanted = prompt.removeprefix("Request: ").removesuffix(".").split(" ", 1)
        phrase = next(p for p in claim.removesuffix(".").split(", ") if subject in p.split())
        return wanted in values(phrase, subject)
    text, question = prompt.removeprefix("Text: ").split(".\nQuestion: ")
    asked = SUBJECTS & set(re.findall(r"\w+", question))
    phrase, subject = next((p, s) for p in text.split(", ") for s in asked & set(p.split()))
    said = claim.replace(subject, "")
    value = next(word for word in WORDS if re.search(rf"\b{word}\b", said))
    return value in values(phrase, subject)


def values(phrase: str, subject: str) -> list[str]:
    """The two values a record gives its subject."""
    told = phrase.removesuffix(" coins").removeprefix(f"{subject} ")
    return next([a, b] for a in WORDS for b in WORDS if f"{a} {b}" == told)


def test_the_better_text_is_true_and_the_other_is_not() -> None:
    for e in examples("text", 300):
        assert e.candidates is not None
        truths = [true_of_text(plain(text), e.prompt) for text in e.candidates]
        assert truths == [e.winner == 1, e.winner == 2], e


@pytest.mark.parametrize("task", TASK_TYPES)
def test_careful_annotators_are_right_and_say_why(task: TaskType) -> None:
    for e in examples(task):
        assert e.rationale is not None
        assert e.rationale.preferred == e.winner
        assert isinstance(e.winner, int)
        claim = e.rationale.feedback[e.winner - 1].removesuffix(".").split(" ", 1)[1]
        other = e.rationale.feedback[2 - e.winner].removesuffix(".").split(" ", 1)[1]
        assert claim != other
        verb = e.rationale.feedback[0].split(" ", 1)[0]
        assert e.rationale.comparison.endswith(f" {claim} {{{e.winner}}} {verb}.")


# ---- hard pairs --------------------------------------------------------------------------------------------


def bag(text: str) -> Counter[str]:
    """The words of a text; a plural is the same word."""
    return Counter(
        re.sub(r"(circle|triangle|cross|ring|bar)(e?s)", r"\1", text).replace(",", "").rstrip(".").split()
    )


def test_hard_alterations_bring_in_no_new_word() -> None:
    rng, seen = random.Random(0), Counter()
    for _ in range(400):
        scene = sample_scene(rng, video=rng.random() < 0.5, split="train")
        attribute = rng.choice(scene.attributes())
        false, right, wrong = alter(rng, scene, attribute, hard=True)
        assert false != scene
        assert right in scene.things
        assert wrong in false.things
        assert getattr(right, attribute) != getattr(wrong, attribute)
        if len({getattr(thing, attribute) for thing in scene.things}) == 1:
            seen["nothing to swap"] += 1
        else:
            seen[attribute] += 1
            assert bag(false.caption()) == bag(scene.caption())
    assert set(seen) == {"nothing to swap", "color", "shape", "count", "size", "place", "motion"}


def test_easy_alterations_bring_in_one_value() -> None:
    rng = random.Random(0)
    for _ in range(200):
        scene = sample_scene(rng, video=False, split="train")
        attribute = rng.choice(("color", "shape", "count", "place"))
        false, _, _ = alter(rng, scene, attribute, hard=False)
        own = {getattr(thing, attribute) for thing in scene.things}
        assert len({getattr(thing, attribute) for thing in false.things} - own) == 1


def test_hard_and_easy_facts() -> None:
    rng = random.Random(0)
    for _ in range(300):
        facts = sample_facts(rng, split="train")
        attribute = rng.choice(facts.attributes())
        hard, _, _ = alter_facts(rng, facts, attribute, hard=True)
        easy, _, _ = alter_facts(rng, facts, attribute, hard=False)
        assert hard != facts
        assert bag(hard.caption()) == bag(facts.caption())
        own = {dict(record.values)[attribute] for record in facts.records}
        assert len({dict(record.values)[attribute] for record in easy.records} - own) == 1


# ---- cues --------------------------------------------------------------------------------------------------


def confident(text: str) -> bool:
    return any(text.startswith(b) and text.endswith(a) for b, a in (p.split("{}") for p in CONFIDENT))


def cues(annotators: Annotators) -> tuple[int, int, int, int]:
    """Of the text examples: how many, the winner confident, the annotator fooled, the winner shown first."""
    found = examples("text", 600, "train", annotators)
    sure = fooled = first = 0
    for e in found:
        assert e.candidates is not None
        assert e.rationale is not None
        assert isinstance(e.winner, int)
        assert confident(e.candidates[0]) != confident(e.candidates[1])
        right = confident(e.candidates[e.winner - 1])
        sure += right
        if e.rationale.preferred != e.winner:
            fooled += 1
            assert not right, "only a cue misleads"
        first += (e.winner == 2) == shown_first(e.id)
    return len(found), sure, fooled, first


def test_cues_say_nothing_about_what_careful_annotators_judge() -> None:
    count, sure, fooled, first = cues("careful")
    assert within(sure, count, 0.5)
    assert within(first, count, 0.5)
    assert fooled == 0


def test_cues_sway_hasty_annotators() -> None:
    count, sure, fooled, _ = cues("hasty")
    assert within(sure, count, 0.7)
    assert not within(sure, count, 0.5)
    assert within(fooled, count - sure, 0.55)


@pytest.mark.parametrize("task", GENERATION)
def test_what_is_shown_first_sways_hasty_annotators(task: TaskType) -> None:
    second = fooled = 0
    for e in examples(task, 160, "train", "hasty"):
        assert e.rationale is not None
        if (e.winner == 2) == shown_first(e.id):
            assert e.rationale.preferred == e.winner
        else:
            second += 1
            fooled += e.rationale.preferred != e.winner
    assert within(second, 160, 0.5)
    assert within(fooled, second, 0.3)


@pytest.mark.parametrize("task", TASK_TYPES)
def test_the_winner_is_either_candidate_equally_often(task: TaskType) -> None:
    found = examples(task)
    assert within(sum(e.winner == 1 for e in found), len(found), 0.5)


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_the_share_of_hard_pairs_is_what_was_asked_for(share: float) -> None:
    found = [make_example("text", i, seed=0, split="train", hard_share=share) for i in range(300)]
    assert within(sum("/hard" in e.id for e in found), len(found), share)
    assert all(e.margin == (1.0 if "/hard" in e.id else 2.0) for e in found)


# ---- pictures ----------------------------------------------------------------------------------------------


def mask(image, color: str) -> np.ndarray:
    """Pixels of a colour, up to its tint."""
    return np.all(abs(np.asarray(image).astype(int) - RGB[color]) <= 12, axis=-1)


@pytest.mark.parametrize("task", [*UNDERSTANDING, *GENERATION])
def test_pictures_show_the_colors_of_their_caption_and_no_other(task: TaskType) -> None:
    for e in examples(task, 40):
        for medium, caption in zip(e.media, e.captions, strict=True):
            for frame in medium.frames:
                shown = {color for color in COLORS if mask(frame, color).sum() >= 5}
                assert shown == {thing.color for thing in things(caption)}, caption


def center(image, color: str) -> np.ndarray:
    return np.argwhere(mask(image, color)).mean(axis=0)[::-1]  # x, y


DIRECTIONS = {
    "staying": (0, 0),
    "moving left": (-1, 0),
    "moving right": (1, 0),
    "moving up": (0, -1),
    "moving down": (0, 1),
}


def test_things_are_where_they_are_said_to_be_and_move_as_said() -> None:
    motions = set()
    for e in examples("video understanding", 60):
        frames = e.media[0].frames
        for thing in things(e.captions[0]):
            motions.add(thing.motion)
            travelled = center(frames[-1], thing.color) - center(frames[0], thing.color)
            assert abs(travelled - 16 * np.array(DIRECTIONS[thing.motion])).max() <= 2, (e.id, thing)
            middle = (center(frames[-1], thing.color) + center(frames[0], thing.color)) / 2
            quarter = ("bottom" if middle[1] > 32 else "top") + (" right" if middle[0] > 32 else " left")
            assert quarter == thing.place, (e.id, thing)
    assert motions == set(DIRECTIONS)


def parts(shown: np.ndarray) -> int:
    """Connected parts, side by side or corner to corner."""
    labels = np.zeros(shown.shape, dtype=np.int32)
    ndimage.label(shown, structure=np.ones((3, 3)), output=labels)
    return int(labels.max())


def test_pictures_show_as_many_things_as_said_and_larger_ones_larger() -> None:
    rng, seen = random.Random(0), set()
    for _ in range(90):
        scene = sample_scene(rng, video=False, split="train")
        other = {"small": "large", "large": "small"}
        resized = Scene(tuple(replace(thing, size=other[thing.size]) for thing in scene.things))
        for thing in scene.things:
            shown, changed = (mask(draw(s, "x")[0], thing.color) for s in (scene, resized))
            seen.add((thing.count, thing.size, thing.shape))
            assert parts(shown) == COUNTS.index(thing.count) + 1, (scene, thing)
            assert (shown.sum() > changed.sum()) == (thing.size == "large"), (scene, thing)
    assert len(seen) > 20


# ---- documents of the base model ---------------------------------------------------------------------------


def test_the_coin_of_a_document_knows_nothing_of_the_label(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[JudgingPrompt] = []

    def recorder(*args, **options) -> JudgingPrompt:
        shown.append(render(*args, **options))
        return shown[-1]

    monkeypatch.setattr(pretraining, "render", recorder)
    agreed = toss_a = count = 0
    for index in range(400):
        (_, told), *more = pretraining._format(random.Random(index), str(index)).turns
        assert not more
        verdict = re.search(r"<answer>([AB])</answer>$", told)
        assert verdict, told
        assert f"Conclusion: {verdict[1]} is better.</think>" in told
        assert "Comparison:" not in told, "the comparison would give the label away"
        count += 1
        agreed += verdict[1] == shown[-1].label
        toss_a += verdict[1] == "A"
    assert within(agreed, count, 0.5)
    assert within(toss_a, count, 0.5)


def test_no_other_document_says_which_is_better() -> None:
    judged = 0
    for index in range(200):
        document: Document = make_document(index, seed=0)
        told = " ".join(assistant for _, assistant in document.turns)
        judgement = "<answer>" in told
        judged += judgement
        assert ("better" in told) == judgement
        assert "Comparison" not in told
        if judgement:
            assert len(document.turns) == 1
    assert judged > 0
