"""The embedded tiny InternVL: its tokenizer loses nothing, and what is shipped is what was made."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lit_msrl.backbones.tiny import CONTROL, TAGS, build_tokenizer
from lit_msrl.policy import EMBEDDED
from tests.conftest import WORDS


@pytest.fixture(scope="module", params=["shipped", "built"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    if request.param == "shipped":
        return AutoTokenizer.from_pretrained(EMBEDDED)
    return build_tokenizer(WORDS, vocab_size=320)


@given(text=st.text() | st.text(st.sampled_from(list("<>/|aAthinkswer \n\t.,'é漢🙂"))))
@example(text="A: zwei Bälle, 三个球 🙂‍↔️ .  B : don't  , no .\r\n\t x ")
@example(text="<think>a</think><answer>B</answer> </think <typ>")
def test_any_text_comes_back_exactly(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    if any(token in text for token in CONTROL):
        return
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_tags_are_one_token_each_and_control_tokens_are_special(tokenizer: PreTrainedTokenizerBase) -> None:
    for tag in TAGS:
        assert len(tokenizer(f"x{tag}y", add_special_tokens=False)["input_ids"]) == 3
        assert tokenizer.convert_tokens_to_ids(tag) not in tokenizer.all_special_ids
    assert all(tokenizer.convert_tokens_to_ids(token) in tokenizer.all_special_ids for token in CONTROL)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_the_shipped_weights_are_those_of_the_checksum() -> None:
    lines = (EMBEDDED / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert "model.safetensors" in sums
    for name, digest in sums.items():
        assert hashlib.sha256((EMBEDDED / name).read_bytes()).hexdigest() == digest, name


def test_the_shipped_model_is_small() -> None:
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) < 8 * 10**6
