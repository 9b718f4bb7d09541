"""vLLM against Qwen2.5-VL and Qwen3-VL, whose pictures have as many tokens as their size asks for."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("vllm")

from lit_msrl.engines import VLLMEngine
from lit_msrl.prompts import JudgingPrompt
from lit_msrl.types import Media
from tests.conftest import picture, picture_prompt, text_prompt, tiny_qwen
from tests.vllm.made import clips, draw, error, step


def two_sizes() -> JudgingPrompt:
    """A small picture, and one that takes several windows of Qwen2.5-VL's attention."""
    wide = picture(1).frames[0].resize((200, 130))
    return replace(picture_prompt(0), media=(picture(0), Media("image", (wide,))))


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_logprobs_are_the_policys(kind: str) -> None:
    policy = tiny_qwen(kind, width=64, largest=224, max_length=1024)
    policy.train_only(["language", "projector", "vision"])
    prompts, engine = [text_prompt(), two_sizes(), clips()], VLLMEngine(timeout=600)
    for _ in range(2):
        assert error(policy, draw(engine, policy, prompts), prompts) < 1e-4
        step(policy)
