"""Each public set's adapter on rows in its published schema, odd ones included."""

from __future__ import annotations

import json
import re

import pytest

from data_modules.datasets import (
    fields,
    generic,
    gram_rr,
    helpsteer3,
    hh_rlhf,
    image_reward,
    open_image_preferences,
    openai_4o_t2i,
    rlaif_v,
    sharegptvideo_dpo,
    skywork_reward,
    text_2_video,
    unified_reward,
    videodpo,
    vision_feedback_mix,
    vlfeedback,
)
from lit_msrl.prompts import reasoning, render
from lit_msrl.types import Media, Rationale

SAID = {"score": 2, "reasoning": "@Response 2 is right, Response 1 not.", "feedback1": "response 1 errs.",
        "feedback2": "Right, unlike @Response 1."}  # fmt: skip
HELPSTEER = {
    "id": "7",
    "domain": "general",
    "language": "english",
    "context": [{"role": "user", "content": "2+2?"}],
    "response1": "5",
    "response2": "4",
    "overall_preference": 2,
    "individual_preference": [{**SAID, "score": -1}, SAID],
}
JUDGING = (
    "You judge. Do NOT say both.\nHere is the data.\n[User Question]\n2+2?\n\n"
    "[The Start of Assistant A's Response]\n4\n[The End of Assistant A's Response]\n\n"
    "[The Start of Assistant B's Response]\n5\nor so\n[The End of Assistant B's Response]"
)
GRAM = {
    "id": "1",
    "instruction": JUDGING,
    "input": "",
    "output": "<think>B is <answer>B</answer>?</think><answer>A</answer>",
}
HH = {
    "id": "1",
    "chosen": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: 2+2?\n\nAssistant: 4",
    "rejected": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: 2+2?\n\nAssistant: 5",
}
ASKED = {"role": "user", "content": "2+2?"}
SKYWORK = {
    "id": "1",
    "chosen": [ASKED, {"role": "assistant", "content": "4"}],
    "rejected": [ASKED, {"role": "assistant", "content": "5"}],
    "source": "magpie",
}
PICTURE = {"bytes": b"png", "path": "a.png"}
RLAIF = {"id": 3, "image": PICTURE, "question": "what?", "chosen": "a cat", "rejected": "a dog", "idx": "9"}
MIX = {
    "id": 3,
    "origin_pre_dataset": "POVID",
    "image": PICTURE,
    "image_path": "images/a.png",
    "conversations": json.dumps(
        [
            {"from": "human", "value": "<image>\nwhat?"},
            {"from": "gpt", "preference_values": ["a cat", "a dog"]},
        ]
    ),
}
OIP = {"id": "1", "prompt": "a cat", "chosen": PICTURE, "rejected": {"bytes": None, "path": "b.png"}}
T2I = {
    "id": "1", "prompt": "a cat", "image1": PICTURE, "image2": PICTURE, "model1": "x", "model2": "y",
    "weighted_results_image1_preference": 0.2, "weighted_results_image2_preference": 0.8,
    "weighted_results_image1_coherence": 0.5, "weighted_results_image2_coherence": 0.5,
    "detailed_results_preference": "[]",
}  # fmt: skip
T2V = {
    "id": "1", "prompt": "a cat runs", "file_name1": "a.mp4", "file_name2": "https://x.org/b.mp4",
    "weighted_results1_Preference": 0.6, "weighted_results2_Preference": None,
    "weighted_results1_Alignment": None, "weighted_results2_Alignment": None,
}  # fmt: skip
SGV = {"id": "v_1", "video": "chunk/v", "prompt": "<video>\nwhat?", "chosen": "a cat", "rejected": "a dog"}
PAIR = (
    "<image>\nYou are a judge of the video and question.\nQuestion: what?\nAnswer 1: a dog\nAnswer 2: a cat\n"
    "Please evaluate both answers based on the following criteria:\n1. Accuracy"
)
UNIFIED = {
    "id": "1",
    "conversations": [
        {"from": "human", "value": PAIR},
        {
            "from": "gpt",
            "value": "Answer 1 is better at first. Overall Judgment: Answer 2 is better than Answer 1.",
        },
    ],
    "images": ["v/1.jpg", "v/2.jpg"],
}
MADE = {
    "id": "1",
    "conversations": [
        {"from": "human", "value": "Compare the videos.\nText Caption: [a cat runs]"},
        {"from": "gpt", "value": "Video 1 is better."},
    ],
    "images": ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"],
}
VIDEODPO = {"id": "1", "video1": 24, "video2": 25, "frame_caption": ["a cat runs", "x"], "score": 0.5}


def rated(*ratings: str | None):
    """A VLFeedback answer."""
    aspects = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
    annotations = {aspect: {"Rating": r, "Rationale": ""} for aspect, r in zip(aspects, ratings, strict=True)}
    return {"annotations": annotations, "model": "m", "response": "/".join(map(str, ratings))}


VLF = {
    "id": "q",
    "prompt": "what?",
    "models": ["a", "b", "c"],
    "completions": [rated("3", "4", "5"), rated("5", "5", "5"), rated("1", "2", "3")],
    "img_path": "a.png",
}
RANKED = {"id": "p", "prompt": "a cat", "generations": ["a.webp", "b.webp", "c.webp"], "ranking": [2, 1, 2]}


def test_helpsteer3_is_negative_for_the_first():
    example = helpsteer3.to_example(HELPSTEER)
    assert example is not None
    assert (example.winner, example.margin, example.prompt, example.candidates) == (
        2,
        2.0,
        "2+2?",
        ("5", "4"),
    )
    first = helpsteer3.to_example({**HELPSTEER, "overall_preference": -3})
    assert first is not None
    assert (first.winner, first.margin) == (1, 3.0)


def test_helpsteer3_takes_the_reasons_of_who_agrees_and_says_no_number():
    example = helpsteer3.to_example(HELPSTEER)
    assert example is not None
    why = Rationale(
        ("This response errs.", "Right, unlike the other response."),
        "Response {2} is right, Response {1} not.",
        2,
    )
    assert example.rationale == why
    think, verdict = reasoning(render(example, swapped=True))
    assert "Response A is right, Response B not." in think
    assert verdict == "A"


@pytest.mark.parametrize(
    "change",
    [
        {"overall_preference": 0},
        {"individual_preference": []},
        {"individual_preference": [{**SAID, "feedback1": ""}]},
        {"individual_preference": [{**SAID, "score": -2}]},
    ],
)
def test_helpsteer3_without_reasons(change):
    example = helpsteer3.to_example({**HELPSTEER, **change})
    assert example is not None
    assert example.rationale is None
    assert example.winner == ("tie" if "overall_preference" in change else 2)
    assert helpsteer3.to_example({**HELPSTEER, **change}, need_rationale=True) is None


def test_gram_rr_reads_the_parts_and_the_last_verdict():
    example = gram_rr.to_example(GRAM)
    assert (example.prompt, example.candidates, example.winner) == ("2+2?", ("4", "5\nor so"), 1)
    sibling = {**GRAM, "instruction": JUDGING.replace("Response]", "Answer]"), "output": " B\n"}
    assert gram_rr.to_example(sibling).winner == 2
    start = JUDGING.index("[The Start of Assistant A")
    split = {**GRAM, "instruction": JUDGING[:start], "input": JUDGING[start:]}
    assert gram_rr.to_example(split).candidates == ("4", "5\nor so")


def test_hh_rlhf_shares_the_prompt():
    example = hh_rlhf.to_example(HH)
    assert example is not None
    assert example.prompt == "User: hi\n\nAssistant: hello\n\nUser: 2+2?"
    assert (example.candidates, example.winner) == (("4", "5"), 1)
    assert hh_rlhf.to_example({**HH, "rejected": "\n\nHuman: other\n\nAssistant: 5"}) is None
    assert hh_rlhf.to_example({**HH, "rejected": HH["rejected"][:-2]}) is None  # the assistant says nothing


def test_skywork_reward():
    example = skywork_reward.to_example(SKYWORK)
    assert example is not None
    assert (example.prompt, example.candidates, example.winner) == ("2+2?", ("4", "5"), 1)
    other = [{**ASKED, "content": "3+3?"}, SKYWORK["rejected"][1]]
    assert skywork_reward.to_example({**SKYWORK, "rejected": other}) is None


def test_rlaif_v_and_the_mix_hold_their_pictures():
    example = rlaif_v.to_example(RLAIF)
    assert (example.task_type, example.candidates, example.winner) == (
        "image understanding",
        ("a cat", "a dog"),
        1,
    )
    assert example.media == (Media("image", b"png"),)
    mixed = vision_feedback_mix.to_example(MIX)
    assert mixed is not None
    assert (mixed.prompt, mixed.candidates, mixed.media[0].source) == ("what?", ("a cat", "a dog"), b"png")
    path = vision_feedback_mix.to_example({**MIX, "image": None})
    assert path is not None
    assert (path.media[0].source, path.media[0].origin) == ("images/a.png", "image_path")
    same = MIX["conversations"].replace("a dog", "a cat")
    assert vision_feedback_mix.to_example({**MIX, "conversations": same}) is None


def test_open_image_preferences():
    example = open_image_preferences.to_example(OIP)
    assert (example.task_type, example.winner, example.candidates) == ("image generation", 1, None)
    assert [media.source for media in example.media] == [b"png", "b.png"]


def test_weights_decide_between_pictures():
    example = openai_4o_t2i.to_example(T2I)
    assert example is not None
    assert (example.winner, example.margin) == (2, pytest.approx(0.6))
    tie = openai_4o_t2i.to_example(T2I, label="coherence")
    assert tie is not None
    assert tie.winner == "tie"
    assert openai_4o_t2i.to_example(T2I, min_margin=0.7) is None


def test_weights_decide_between_clips_and_a_missing_one_is_zero():
    example = text_2_video.to_example(T2V)
    assert example is not None
    assert (example.task_type, example.winner, example.margin) == ("video generation", 1, 0.6)
    assert [media.source for media in example.media] == ["a.mp4", "https://x.org/b.mp4"]
    assert text_2_video.to_example(T2V, label="Alignment") is None


def test_sharegptvideo_in_all_its_forms():
    example = sharegptvideo_dpo.to_example(SGV)
    assert example is not None
    assert (example.prompt, example.candidates, example.winner) == ("what?", ("a cat", "a dog"), 1)
    assert example.media == (Media("video", "chunk/v"),)
    turn = {"from": "human", "value": "<video>\nwhat?"}
    answers = {name: {"from": "gpt", "value": SGV[name]} for name in ("chosen", "rejected")}
    other = {"id": "v_1", "video": "chunk/v", "conversations": [turn], **answers}
    assert sharegptvideo_dpo.to_example(other) == example
    judged = sharegptvideo_dpo.to_example(UNIFIED)
    assert judged is not None
    assert (judged.prompt, judged.candidates, judged.winner) == ("what?", ("a dog", "a cat"), 2)
    assert judged.media == (Media("video", ("v/1.jpg", "v/2.jpg")),)
    alone = {
        **UNIFIED,
        "conversations": [{"from": "human", "value": "Rate this."}, {"from": "gpt", "value": "5"}],
    }
    assert sharegptvideo_dpo.to_example(alone) is None


def test_videodpo_in_both_forms():
    example = videodpo.to_example(VIDEODPO)
    assert example is not None
    assert (example.prompt, example.winner, example.margin) == ("a cat runs", 1, 0.5)
    assert [m.source for m in example.media] == ["winvideos/000012.mp4", "losevideos/000012.mp4"]
    turned = videodpo.to_example({"id": "1", "video1": 25, "video2": 24, "frame_caption": "a cat runs"})
    assert turned is not None
    assert (turned.winner, turned.margin) == (2, None)
    made = videodpo.to_example(MADE)
    assert made is not None
    assert (made.prompt, made.winner) == ("a cat runs", 1)
    assert [m.source for m in made.media] == [("a/1.jpg", "a/2.jpg"), ("b/1.jpg", "b/2.jpg")]
    clips = videodpo.to_example({**MADE, "images": ["a.mp4", "b.mp4"]})
    assert clips is not None
    assert [m.source for m in clips.media] == ["a.mp4", "b.mp4"]


def test_unified_reward_pictures_and_ties():
    verdict = [MADE["conversations"][0], {"from": "gpt", "value": "Both images are equally good."}]
    row = {**MADE, "conversations": verdict, "images": ["a.png", "b.png"]}
    example = unified_reward.to_example(row, "image generation")
    assert example is not None
    assert (example.winner, [m.source for m in example.media]) == ("tie", ["a.png", "b.png"])


def test_vlfeedback_pairs_best_and_worst_or_all():
    (pair,) = vlfeedback.to_example(VLF)
    assert (pair.id, pair.winner, pair.margin) == ("q-1-2", 1, 3.0)
    assert pair.candidates == ("5/5/5", "1/2/3")
    pairs = vlfeedback.to_example(VLF, pairs="all")
    assert [(p.id, p.winner) for p in pairs] == [("q-0-1", 2), ("q-0-2", 1), ("q-1-2", 1)]
    unrated = {**VLF, "completions": [rated("N/A", "5", "5"), *VLF["completions"][:2]]}
    assert [p.id for p in vlfeedback.to_example(unrated)] == ["q-1-2"]
    assert vlfeedback.to_example({**VLF, "completions": [rated("1", "1", "1")] * 2}) == []


def test_image_reward_ranks_from_one():
    (pair,) = image_reward.to_example(RANKED)
    assert (pair.id, pair.winner, pair.margin) == ("p-0-1", 2, 1.0)
    pairs = image_reward.to_example(RANKED, pairs="all")
    assert [p.winner for p in pairs] == [2, "tie", 1]


@pytest.mark.parametrize(
    ("adapter", "row", "change", "message"),
    [
        (helpsteer3, HELPSTEER, {"overall_preference": 4}, "'overall_preference' is 4"),
        (helpsteer3, HELPSTEER, {"overall_preference": None}, "'overall_preference' .the label. is missing"),
        (helpsteer3, HELPSTEER, {"context": [{"role": "assistant", "content": "x"}]}, "end with a user turn"),
        (helpsteer3, HELPSTEER, {"response1": None}, "'response1' is missing"),
        (gram_rr, GRAM, {"output": "A or B"}, "'output' ends in 'A or B'"),
        (gram_rr, GRAM, {"output": "<answer>C</answer>"}, "'output' ends in"),
        (gram_rr, GRAM, {"instruction": "2+2?"}, "'instruction' lacks"),
        (hh_rlhf, HH, {"chosen": "4"}, "'chosen' is no transcript"),
        (hh_rlhf, HH, {"rejected": HH["rejected"] + "\n\nHuman: so?"}, "'rejected' is no transcript"),
        (skywork_reward, SKYWORK, {"chosen": [ASKED]}, "list of objects, with at least two"),
        (skywork_reward, SKYWORK, {"chosen": [ASKED, ASKED]}, "must end with an assistant turn, not 'user'"),
        (rlaif_v, RLAIF, {"image": None}, "'image' holds no image"),
        (rlaif_v, RLAIF, {"question": ""}, "'question' is missing or empty"),
        (vision_feedback_mix, MIX, {"conversations": "[{"}, "'conversations' is not JSON"),
        (vision_feedback_mix, MIX, {"conversations": "[{}, {}]"}, "two texts as 'preference_values'"),
        (open_image_preferences, OIP, {"rejected": {"bytes": None}}, "'rejected' holds no image"),
        (openai_4o_t2i, T2I, {"weighted_results_image2_preference": None}, "image2_preference' is missing"),
        (openai_4o_t2i, T2I, {"weighted_results_image2_preference": "much"}, "is 'much', not a number"),
        (openai_4o_t2i, T2I, {"weighted_results_image2_preference": float("nan")}, "is not a number"),
        (text_2_video, T2V, {"file_name1": None}, "'file_name1' holds no video"),
        (sharegptvideo_dpo, SGV, {"chosen": {"from": "gpt"}}, "'chosen' is missing"),
        (sharegptvideo_dpo, UNIFIED, {"images": []}, "'images' must be a list of paths"),
        (videodpo, VIDEODPO, {"video2": 26}, r"are \[24, 26\]; one must be even"),
        (videodpo, VIDEODPO, {"video1": 2.5}, "'video1' is 2.5"),
        (videodpo, VIDEODPO, {"frame_caption": []}, "'frame_caption' is list, not text"),
        (videodpo, MADE, {"images": ["a", "b", "c"]}, "'images' has 3 files"),
        (vlfeedback, VLF, {"completions": [rated("N/A", "1", "1")] * 2}, "fewer than two answers"),
        (vlfeedback, VLF, {"completions": [{}, {}]}, "an answer without 'annotations'"),
        (image_reward, RANKED, {"ranking": [1, 2]}, "'ranking' is .1, 2."),
        (image_reward, RANKED, {"ranking": [0, 1, 2]}, "expected a rank from 1"),
    ],
)  # fmt: skip
def test_a_row_that_does_not_fit_names_its_field(adapter, row, change, message):
    adapter.to_example(row)
    with pytest.raises(ValueError, match=message):
        adapter.to_example({**row, **change})


@pytest.mark.parametrize(
    ("adapter", "row", "column"),
    [
        (helpsteer3, HELPSTEER, "response2"), (gram_rr, GRAM, "output"), (hh_rlhf, HH, "rejected"),
        (skywork_reward, SKYWORK, "chosen"), (rlaif_v, RLAIF, "chosen"),
        (vision_feedback_mix, MIX, "conversations"),
        (open_image_preferences, OIP, "chosen"), (openai_4o_t2i, T2I, "weighted_results_image1_preference"),
        (text_2_video, T2V, "weighted_results1_Preference"), (sharegptvideo_dpo, SGV, "video"),
        (videodpo, VIDEODPO, "video2"), (vlfeedback, VLF, "img_path"), (image_reward, RANKED, "ranking"),
    ],
)  # fmt: skip
def test_a_renamed_column_is_named(adapter, row, column):
    renamed = {("other" if name == column else name): value for name, value in row.items()}
    with pytest.raises(ValueError, match=re.escape(repr(column))):
        adapter.to_example(renamed)


def test_the_set_without_labels_is_told_from_the_one_with():
    with pytest.raises(ValueError, match="open-image-preferences-v1 has no labels"):
        open_image_preferences.to_example({"id": "1", "prompt": "a cat", "image_quality_dev": PICTURE})


def test_generic_reads_columns_of_any_name():
    row = {"id": "1", "q": "what?", "good": "a cat", "bad": "a dog", "photo": 7, "label": "same"}
    columns = {"prompt": "q", "candidate_1": "good", "candidate_2": "bad", "winner": "label"}
    values = {"image": "photos/{photo}.jpg"}
    example = generic.to_example(row, columns, values, {"A": 1, "B": 2, "same": "tie"})
    assert (example.prompt, example.candidates, example.winner) == ("what?", ("a cat", "a dog"), "tie")
    assert (example.task_type, example.media[0].source) == ("image understanding", "photos/7.jpg")
    assert generic.to_example(row, columns | {"winner": "photo"}, values, {7: 2}).winner == 2  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"prompt": "question"}}, "field 'question' is missing; the row has id, q"),
        ({"columns": {"promt": "q"}}, "options name promt"),
        ({"columns": {"prompt": "q"}, "values": {"image": "{photo}.jpg"}}, "names field 'photo'"),
        ({"columns": {"prompt": "q"}}, "'winner' .the label. is missing or empty; prompt is column 'q'"),
    ],
)
def test_generic_says_which_column_it_read(options, message):
    with pytest.raises(ValueError, match=message):
        generic.to_example({"id": "1", "q": "what?"}, **options)


def test_numbers_and_pairs():
    assert fields.number({"a": " 0.5"}, "a") == 0.5
    with pytest.raises(ValueError, match="'a' is missing"):
        fields.number({"a": None}, "a")
