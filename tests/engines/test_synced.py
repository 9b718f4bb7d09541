"""What a sampler is sent and when, and that a wrong one is found, on a sampler made of a second policy."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoTokenizer

from lit_msrl.adapters import NF4, LoRA
from lit_msrl.engines import HFEngine, Sampling
from lit_msrl.engines.checks import StartUpChecks, grey
from lit_msrl.engines.synced import SyncedEngine
from lit_msrl.engines.weights import (
    Named,
    adapter_weights,
    fingerprint,
    model_weights,
    sends_adapters_alone,
    write_model_folder,
)
from lit_msrl.policy import GenerativeRMPolicy
from tests.conftest import picture_prompt, text_prompt, tiny_internvl

SAMPLING = Sampling(group_size=2, max_length=8)


class CopyEngine(SyncedEngine):
    """Samples from a model of its own that holds what it was sent, without `skipped`."""

    def __init__(self, *, skipped: str = "nothing", blind: bool = False, temperature: float = 1.0) -> None:
        super().__init__()
        self.skipped, self.blind, self.temperature = skipped, blind, temperature
        self.log: list[str] = []

    half = False  # type: ignore[assignment]

    def start(self, policy: GenerativeRMPolicy) -> None:
        self.log.append("start")
        self.copy = tiny_internvl(seed=5, lora=policy.lora)
        self.copy.head.weight = torch.nn.Parameter(self.copy.head.weight.detach().clone())  # not tied

    def send_model(self, policy: GenerativeRMPolicy, weights: Iterator[Named]) -> None:
        self.log.append("model")
        self._put(weights, lambda name: name.replace(".base_layer.", "."))

    def send_adapters(self, policy: GenerativeRMPolicy, weights: Iterator[Named]) -> None:
        self.log.append("adapters")
        self._put(weights, lambda name: f"base_model.model.{name.replace('.default.', '.')}")

    def _put(self, weights: Iterator[Named], rename) -> None:
        mine = {rename(name): p for name, p in self.copy.model.named_parameters(remove_duplicate=False)}
        for name, tensor in weights:
            if self.skipped not in name:
                mine[name].data = tensor.clone()

    def draw(self, policy, prompts, batch, *, sampling, seed):
        self.log.append(f"draw {sampling.group_size} of {len(prompts)}")
        shown = self.copy.encode([text_prompt()] * len(prompts)) if self.blind else self.copy.encode(prompts)
        warmer = Sampling(sampling.group_size, sampling.max_length, sampling.temperature * self.temperature)
        return HFEngine().generate(self.copy, prompts, shown, sampling=warmer, seed=seed)


def generate(engine: SyncedEngine, policy: GenerativeRMPolicy, prompts=None):
    prompts = prompts or [text_prompt(), picture_prompt()]
    return engine.generate(policy, prompts, policy.encode(prompts), sampling=SAMPLING, seed=1)


def step(policy: GenerativeRMPolicy) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)


def test_weights_are_sent_when_they_have_changed_and_only_then() -> None:
    policy, engine = tiny_internvl(), CopyEngine()
    policy.train_only(["language"])
    generate(engine, policy)
    assert engine.log == ["start", "model", "draw 2 of 1", "draw 2 of 2"]
    generate(engine, policy)
    assert engine.log[4:] == ["draw 2 of 2"]
    step(policy)
    drawn = generate(engine, policy)
    assert engine.log[5:] == ["model", "draw 2 of 1", "draw 2 of 2"]
    learned, _ = policy.logprobs(policy.encode([text_prompt(), picture_prompt()]), drawn.ids, drawn.mask)
    assert_close(drawn.logprobs, learned.detach(), atol=1e-5, rtol=0)
    step(policy)
    generate(engine, policy)
    assert engine.log[8:] == ["model", "draw 2 of 2"], "checked at the start and after the first step only"


def test_another_policy_is_started_anew() -> None:
    engine = CopyEngine()
    generate(engine, tiny_internvl())
    generate(engine, tiny_internvl(seed=1))
    assert engine.log.count("start") == 2


def test_a_policy_that_is_done_with_is_not_kept() -> None:
    policy, engine = tiny_internvl(), CopyEngine()
    generate(engine, policy)
    kept = weakref.ref(policy)
    del policy
    gc.collect()
    assert kept() is None


def test_adapters_are_sent_alone_unless_other_weights_train() -> None:
    policy, engine = tiny_internvl(lora=LoRA(4, 8)), CopyEngine()
    policy.train_only(["language"])
    assert sends_adapters_alone(policy)
    generate(engine, policy)
    step(policy)
    generate(engine, policy)
    assert [word for word in engine.log if "draw" not in word] == ["start", "model", "adapters", "adapters"]
    policy.train_only(["projector"])
    step(policy)
    generate(engine, policy)
    assert [word for word in engine.log if "draw" not in word][4:] == ["model", "adapters"]


def test_the_generators_are_left_alone() -> None:
    policy = tiny_internvl()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    generate(CopyEngine(), policy)
    assert torch.rand(4).equal(expected)


@pytest.mark.parametrize("skipped", ["lm_head", "layers.1", "vision_tower", "projector.linear_1"])
def test_a_weight_that_did_not_arrive_is_found(skipped: str) -> None:
    with pytest.raises(ValueError, match=r"differ by .* nats a token at its start .*'p0' with 2 media"):
        generate(CopyEngine(skipped=skipped), tiny_internvl())


@pytest.mark.parametrize("options", [{"blind": True}, {"temperature": 1.3}])
def test_an_engine_that_reads_or_draws_otherwise_is_found(options) -> None:
    with pytest.raises(ValueError, match="the engine does not compute what is trained"):
        generate(CopyEngine(**options), tiny_internvl())


def test_weights_that_are_not_sent_after_a_step_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, engine = tiny_internvl(), CopyEngine()
    policy.train_only(["language"])
    generate(engine, policy)
    monkeypatch.setattr(engine, "_put", lambda weights, rename: None)
    step(policy)
    with pytest.raises(ValueError, match="after weights were sent"):
        generate(engine, policy)


def test_a_model_that_no_picture_reaches_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, prompts = tiny_internvl(), [picture_prompt()]
    StartUpChecks(half=False)(HFEngine().generate, policy, prompts, SAMPLING)
    with torch.no_grad():
        policy.model.model.multi_modal_projector.linear_2.weight.zero_()
    with pytest.raises(ValueError, match="pictures do not reach the model"):
        StartUpChecks(half=False)(HFEngine().generate, policy, prompts, SAMPLING)


def test_pictures_that_matter_less_than_an_engine_rounds_are_seen() -> None:
    def rounding(*args, **options):
        drawn = HFEngine().generate(*args, **options)
        return replace(drawn, logprobs=drawn.logprobs + 0.04 * drawn.mask)

    policy, prompts = tiny_internvl(), [picture_prompt()]
    with torch.no_grad():
        policy.model.model.multi_modal_projector.linear_2.weight.mul_(0.05)
    checks = StartUpChecks(half=True)
    checks(rounding, policy, prompts, SAMPLING)
    assert checks.sees


def test_an_engine_that_sees_grey_is_found_even_where_16_bits_would_allow_it() -> None:
    policy, prompts = tiny_internvl(), [picture_prompt()]
    with torch.no_grad():
        policy.head.weight.mul_(0.3)  # so that pictures change log-probabilities by less than 0.05
    greyed = [replace(one, media=tuple(grey(medium) for medium in one.media)) for one in prompts]

    def blind(policy, prompts, batch, **options):
        return HFEngine().generate(policy, greyed, policy.encode(greyed), **options)

    with pytest.raises(ValueError, match=r"the engine has made -?0% of that change: pictures do not reach"):
        StartUpChecks(half=True)(blind, policy, prompts, SAMPLING)


def test_grey_media_have_the_size_and_number_of_the_real_ones() -> None:
    real = picture_prompt().media[0]
    blank = grey(real)
    assert [f.size for f in blank.frames] == [f.size for f in real.frames]
    assert blank.frames[0].getextrema() == ((127, 127),) * 3


def test_names_are_those_of_the_plain_model_with_and_without_adapters() -> None:
    plain, adapted = tiny_internvl(), tiny_internvl(lora=LoRA(4, 8))
    sent = dict(model_weights(plain))
    assert sent.keys() == plain.model.state_dict().keys()
    assert "lm_head.weight" in sent
    assert dict(model_weights(adapted)).keys() == sent.keys()
    names = list(dict(adapter_weights(adapted)))
    assert len(names) == 2 * 7 * 2  # A and B, seven projections, two layers
    assert names[0] == "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"


def test_sums_tell_a_step_from_none() -> None:
    policy = tiny_internvl()
    policy.train_only(["language"])
    before = fingerprint(policy)
    assert before == fingerprint(policy)
    assert not any("vision" in name for name in before)
    with torch.no_grad():
        policy.head.weight[0, 0] += 1e-6
    after = fingerprint(policy)
    assert [name for name in before if before[name] != after[name]] == [
        "model.model.language_model.embed_tokens.weight"
    ]


def test_weights_in_four_bits_are_sent_as_numbers(tmp_path) -> None:
    policy = GenerativeRMPolicy("tiny", LoRA(), NF4())
    plain = GenerativeRMPolicy("tiny")
    sent, published = dict(model_weights(policy)), dict(model_weights(plain))
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert sent[name].shape == published[name].shape
    assert not sent[name].equal(published[name])
    x = torch.randn(2, published[name].shape[1])
    layer = policy.model.get_submodule("model.language_model.layers.0.mlp.up_proj")
    assert_close(layer.base_layer(x), x @ sent[name].T, atol=1e-4, rtol=1e-4)  # type: ignore[operator]
    write_model_folder(policy, tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()


def test_a_model_folder_has_what_the_processor_of_the_family_asks_for(tmp_path) -> None:
    policy = tiny_internvl()
    write_model_folder(policy, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.context_image_token_id == policy.model.config.image_token_id
    assert tokenizer.start_image_token == "<img>"
    assert AutoConfig.from_pretrained(tmp_path).architectures == ["InternVLForConditionalGeneration"]
    assert json.loads((tmp_path / "processor_config.json").read_text())["image_seq_length"] == 4
    text = policy.chat(picture_prompt().text, picture_prompt().media)
    assert tokenizer(text)["input_ids"] == policy.tokenizer(text)["input_ids"]
