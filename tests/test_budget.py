"""Counts against the policy's own encoding, and how an example is made to fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
from PIL import Image

from lit_msrl.budget import LEAST_PIXELS, Budget, candidate_turns, judging_turns
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import render, render_candidate
from lit_msrl.types import Media, PreferenceExample, TaskType
from tests.conftest import tiny_internvl, tiny_qwen

WORDS = ("the ball <|im_end|> naïve", "the blue sky")


def frames(*sizes: tuple[int, int]) -> tuple[Image.Image, ...]:
    return tuple(Image.new("RGB", size) for size in sizes)


def pair(*sizes: tuple[int, int], kind: Literal["image", "video"] = "image") -> PreferenceExample:
    """Two media of these frames for a prompt."""
    media = tuple(Media(kind, frames(*sizes)) for _ in range(2))
    task: TaskType = "image generation" if kind == "image" else "video generation"
    return PreferenceExample("7", task, "a red ball", 1, media=media, captions=WORDS)


def tiling(policy: GenerativeRMPolicy) -> GenerativeRMPolicy:
    """With a picture processor that cuts tiles."""
    policy.backbone.image_processor.crop_to_patches = True
    return policy


def budget(policy: GenerativeRMPolicy, limit: int = 10_000, views=("visual",)) -> Budget:
    return Budget(policy, judging_turns(views, "full"), limit)


def encoded(policy: GenerativeRMPolicy, example: PreferenceExample) -> int:
    """Tokens of the longer of both orders, as the policy makes them."""
    prompts = [render(example, view="visual", swapped=swapped) for swapped in (False, True)]
    return max(int(policy.encode([prompt]).attention_mask.sum()) for prompt in prompts)


@pytest.mark.parametrize("family", ["internvl", "internvl in tiles", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("sizes", [[(64, 64)], [(640, 480)], [(33, 200), (300, 90), (97, 41)]])
def test_tokens_are_counted_as_the_policy_encodes_them(family, sizes):
    policy = tiny_qwen(family) if family.startswith("qwen") else tiny_internvl()
    policy = tiling(policy) if family.endswith("tiles") else policy
    example = pair(*sizes, kind="image" if len(sizes) == 1 else "video")
    sizes = [[frame.size for frame in medium.frames] for medium in example.media]
    assert budget(policy).tokens(example, sizes) == encoded(policy, example)


def test_the_longest_view_counts_and_text_has_no_pictures():
    policy = tiny_internvl()
    example = replace(pair((64, 64)), captions=("word " * 300, "word " * 300))
    sizes = [[(64, 64)]] * 2
    both = budget(policy, views=("caption", "visual")).tokens(example, sizes)
    assert both == budget(policy, views=("caption",)).tokens(example, sizes)
    assert both > budget(policy).tokens(example, sizes)
    text = PreferenceExample("1", "text", "2+2?", 1, candidates=("4", "5"))
    assert budget(policy).tokens(text, []) == int(policy.encode([render(text)]).attention_mask.sum())


def test_smaller_pictures_come_before_fewer_frames():
    policy = tiling(tiny_internvl())
    policy.backbone.image_processor.size = {"height": 256, "width": 256}  # 1024x1024: 12 tiles at most
    example = pair((1024, 1024), (1024, 1024), kind="video")
    whole = encoded(policy, example)
    assert budget(policy, whole).fit(example) is example
    once = budget(policy, whole - 1).fit(example)
    assert [frame.size for frame in once.media[0].frames] == [(724, 724)] * 2  # half the pixels
    assert encoded(policy, once) < whole
    least = [[(256, 256)] * 2] * 2
    smallest = budget(policy).tokens(example, least)
    fewer = budget(policy, smallest - 1).fit(example)
    assert [frame.size for frame in fewer.media[0].frames] == [(256, 256)]
    assert encoded(policy, fewer) <= smallest - 1


def test_what_does_not_fit_with_the_least_media_is_not_admitted_and_nothing_else():
    policy = tiny_internvl()
    example = pair((300, 300), (300, 300), kind="video")
    least = budget(policy).tokens(example, [[(256, 256)]] * 2)
    assert budget(policy, least).admits(example)
    assert not budget(policy, least - 1).admits(example)
    assert encoded(policy, budget(policy, least).fit(example)) == least


def test_text_is_counted_where_its_bytes_do_not_decide():
    policy = tiny_internvl()
    text = PreferenceExample("1", "text", "red ball " * 200, 1, candidates=("a", "b"))
    exact = budget(policy).tokens(text, [])
    assert len(render(text).text.encode()) > exact
    assert budget(policy, exact).admits(text)
    assert not budget(policy, exact - 1).admits(text)
    assert LEAST_PIXELS == 256**2


def test_a_discriminative_model_reads_one_candidate_at_a_time():
    policy = tiny_internvl()
    one, two = Media("image", frames((64, 64))), Media("video", frames((64, 64), (64, 64)))
    generated = PreferenceExample("7", "video generation", "a ball", 1, media=(two, replace(two)))
    asked = PreferenceExample("8", "image understanding", "what?", 1, ("a long " * 20, "b"), (one,))
    for example in (generated, asked):
        turns = [render_candidate(example, candidate) for candidate in (1, 2)]
        longest = max(int(policy.encode_turns([turn], ["x"]).attention_mask.sum()) for turn in turns)
        sizes = [[frame.size for frame in medium.frames] for medium in example.media]
        assert Budget(policy, candidate_turns("visual"), 99).tokens(example, sizes) == longest
