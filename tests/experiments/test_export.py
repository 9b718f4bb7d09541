"""What is exported is the model that was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText

from experiments.export import export, policy_of
from lit_msrl.evaluation import load_weights
from lit_msrl.policy import GenerativeRMPolicy
from tests.conftest import picture_prompt, text_prompt
from tests.experiments.made import call, command

PROMPTS = [text_prompt("t"), picture_prompt(1)]
QUICK = ["--trainer.limit_val_batches=0", "--trainer.max_steps=2", "--model.warmup_steps=0"]
LORA = ["--model.policy.lora.rank=4", "--model.learning_rates={language: 0.01}"]


def trained(folder: Path, *options: str) -> Path:
    """A run of two steps."""
    call("baseline_sft", command("baseline_sft", folder, *QUICK, *options))
    return folder / "baseline_sft" / "version_0"


def policy_after(run: Path) -> GenerativeRMPolicy:
    """The policy as its stage left it, adapters and all."""
    policy, _ = policy_of(yaml.safe_load((run / "config.yaml").read_text()))
    load_weights(policy, run / "checkpoints" / "last.ckpt")
    return policy.eval()


@torch.no_grad()
def logits(model: torch.nn.Module, policy: GenerativeRMPolicy) -> torch.Tensor:
    batch = policy.encode(PROMPTS)
    positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
    return model(
        batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions, **batch.media
    ).logits


@pytest.mark.parametrize("options", [[], LORA, [*LORA, "--model.policy.quantization.double_quant=true"]])
def test_a_plain_model_with_the_same_logits(tmp_path: Path, options: list[str]) -> None:
    run = trained(tmp_path, *options)
    folder = export(str(run), str(tmp_path / "exported"))
    policy = policy_after(run)
    expected = logits(policy.model, policy)
    plain = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(plain).__name__ == "InternVLForConditionalGeneration"
    assert_close(logits(plain, policy), expected, atol=1e-4, rtol=0)
    base = GenerativeRMPolicy("tiny", max_length=1024)
    assert (logits(base.model, base) - expected).abs().max() > 1e-3
    again = GenerativeRMPolicy(str(folder), max_length=1024)  # with tokenizer and image processor
    assert again.encode(PROMPTS).input_ids.equal(policy.encode(PROMPTS).input_ids)
    assert_close(logits(again.model, again), expected, atol=1e-4, rtol=0)


def test_adapters_alone_with_the_same_logits(tmp_path: Path) -> None:
    run = trained(tmp_path, *LORA)
    folder = export(str(run / "checkpoints" / "last.ckpt"), str(tmp_path / "exported"), merge=False)
    assert not (folder / "model.safetensors").exists()
    policy = policy_after(run)
    adapted = AutoModelForImageTextToText.from_pretrained(folder)
    assert_close(logits(adapted, policy), logits(policy.model, policy), atol=1e-4, rtol=0)


def test_the_card_says_what_the_run_did(tmp_path: Path) -> None:
    run = trained(tmp_path, "--data.train.seed=77")
    text = (export(str(run), str(tmp_path / "exported")) / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "tiny"
    assert "from stage `baseline_sft`, step 2." in text
    assert "seed: 77" in text
    assert "| sft/loss | " in text
    assert "max_completion: 16" in text


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such run or checkpoint"):
        export(str(tmp_path / "nothing"), str(tmp_path / "exported"))
    run = trained(tmp_path, *LORA[:1])  # the stage also trains projector and vision tower
    with pytest.raises(ValueError, match=r"trained \d+ other weights too .*adapters alone are not the model"):
        export(str(run), str(tmp_path / "exported"), merge=False)
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        export(str(run), str(tmp_path / "there"))
    (run / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"config\.yaml is missing"):
        export(str(run), str(tmp_path / "exported"))
