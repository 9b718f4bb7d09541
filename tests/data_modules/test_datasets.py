"""Each adapter on a row of its schema, and on rows with something missing."""

import pytest

from data_modules.datasets import generic, judgebench, sharegpt_ranking, videogen_rewardbench
from lit_msrl.types import Media, Rationale

TEXT = {"id": 5, "prompt": "2+2?", "candidate_1": "4", "candidate_2": "5", "winner": 2}
IMAGES = {
    "id": "x",
    "prompt": "a cat",
    "media_1": b"1",
    "media_2": b"2",
    "winner": "1",
    "task_type": "image generation",
}
JUDGEBENCH = {
    "pair_id": "p",
    "question": "q",
    "response_A": "a",
    "response_B": "b",
    "label": "B>A",
    "source": "math",
}
SHAREGPT = {
    "id": "1",
    "conversations": [{"from": "human", "value": "hi"}],
    "chosen": {"from": "gpt", "value": "good"},
    "rejected": {"from": "gpt", "value": "bad"},
}
VIDEOGEN = {"id": "1", "path_A": "a.mp4", "path_B": "b.mp4", "prompt": "p", "VQ": "A", "Overall": " B "}


def test_generic_text():
    example = generic.to_example(TEXT)
    assert (example.id, example.task_type, example.winner) == ("5", "text", 2)
    assert example.candidates == ("4", "5")


def test_generic_pictures_and_captions():
    example = generic.to_example({**IMAGES, "caption_1": "one", "caption_2": "two"})
    assert example.media == (Media("image", b"1"), Media("image", b"2"))
    assert example.captions == ("one", "two")
    assert example.candidates is None


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize(
    "value", ["a.bin", b"1", {"bytes": b"1", "path": None}, {"bytes": None, "path": "a.bin"}]
)
def test_generic_understanding_is_inferred(kind, value):
    example = generic.to_example({**TEXT, kind: value, "caption": "a cat"})
    assert example.task_type == f"{kind} understanding"
    assert example.media[0].kind == kind
    assert example.media[0].source in ("a.bin", b"1")
    assert example.captions == ("a cat",)


def test_generic_rationale():
    why = {"feedback_1": "f1", "feedback_2": "f2", "comparison": "c", "preferred": "1"}
    assert generic.to_example({**TEXT, **why}).rationale == Rationale(("f1", "f2"), "c", 1)
    with pytest.raises(ValueError, match="'feedback_2' is missing"):
        generic.to_example({**TEXT, **why, "feedback_2": None})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**TEXT, "winner": None}, "'winner' .the label. is missing"),
        ({**TEXT, "winner": 0}, "'winner' is 0"),
        ({**TEXT, "winner": [1]}, "'winner' is"),
        ({**TEXT, "candidate_2": None}, "'candidate_2' is missing"),
        ({**TEXT, "prompt": 3}, "'prompt' is int, not text"),
        ({**TEXT, "task_type": "odour"}, "'task_type' is 'odour'"),
        ({**TEXT, "task_type": "image understanding"}, "needs media or captions"),
        ({**TEXT, "caption": "a cat"}, "'task_type' is missing"),
        ({**IMAGES, "media_2": None}, "'media_2' holds no image"),
        ({**IMAGES, "task_type": None}, "'task_type' is missing"),
        ({**TEXT, "id": None}, "'id' is missing"),
    ],
)
def test_generic_refuses(row, message):
    with pytest.raises(ValueError, match=message):
        generic.to_example(row)


def test_judgebench():
    example = judgebench.to_example(JUDGEBENCH)
    assert (example.id, example.winner, example.candidates) == ("p", 2, ("a", "b"))
    with pytest.raises(ValueError, match="'label' is 'A=B'"):
        judgebench.to_example({**JUDGEBENCH, "label": "A=B"})


def test_sharegpt_ranking():
    example = sharegpt_ranking.to_example(SHAREGPT)
    assert (example.prompt, example.candidates, example.winner) == ("hi", ("good", "bad"), 1)


def test_sharegpt_ranking_names_the_speakers_of_a_conversation():
    turns = [{"from": who, "value": who} for who in ("system", "human", "gpt", "human")]
    example = sharegpt_ranking.to_example({**SHAREGPT, "conversations": turns})
    assert example.prompt == "System: system\n\nUser: human\n\nAssistant: gpt\n\nUser: human"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conversations": []}, "at least one"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "end with a human turn"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "'from' is 'alien'"),
        ({"rejected": {"from": "gpt"}}, "'rejected' is missing"),
        ({"chosen": "good"}, "'chosen' is missing"),
    ],
)
def test_sharegpt_ranking_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        sharegpt_ranking.to_example({**SHAREGPT, **change})


def test_videogen_rewardbench_reads_the_label_asked_for():
    assert videogen_rewardbench.to_example(VIDEOGEN).winner == 2
    example = videogen_rewardbench.to_example(VIDEOGEN, label="VQ")
    assert (example.winner, example.task_type) == (1, "video generation")
    assert example.media == (Media("video", "a.mp4"), Media("video", "b.mp4"))
    with pytest.raises(ValueError, match="'Overall' .the label. is missing or empty"):
        videogen_rewardbench.to_example({**VIDEOGEN, "Overall": ""})
    with pytest.raises(ValueError, match="'TA' .the label. is missing; choose"):
        videogen_rewardbench.to_example(VIDEOGEN, label="TA")
