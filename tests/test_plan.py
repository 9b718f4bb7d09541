"""The memory plan: hand-computed parts, configurations, and the peak of a real step on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest
import torch

from lit_msrl.adapters import LoRA
from lit_msrl.footprint import LOGIT_CHUNK, ModelSize, Step, estimate
from lit_msrl.functional import token_logprobs
from lit_msrl.plan import main, merged
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.sizes import Lengths, device_count, model_size, read, size_of

REPOSITORY = Path(__file__).parents[1]
CONFIGS = REPOSITORY / "experiments" / "configs"
SIZE = ModelSize(
    layers=2,
    layer_parameters=1000,
    other_parameters=100,
    projector_parameters=10,
    vision_parameters=50,
    adapter_parameters=0,
    width=8,
    queries=8,
    keys=4,
    has_query_norm=False,
    inner=16,
    vocabulary=32,
    vision_layers=1,
    vision_width=4,
    vision_inner=8,
    patches_per_token=4,
)
STEP = Step(
    prompts=4, micro_batch=1, group=2, prompt_tokens=10, picture_tokens=5, completion_tokens=3,
    trained=frozenset({"language", "projector", "vision"}),
)  # fmt: skip


@pytest.fixture
def eight_b(tmp_path: Path) -> Path:
    """A folder with the configuration of an InternVL of 8B, and no weights."""
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    text = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "vocab_size": 151936}
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    }
    config = json.loads((REPOSITORY / "lit_msrl/assets/tiny_internvl/config.json").read_text())
    config["text_config"] |= text | heads | {"tie_word_embeddings": False, "layer_types": None}
    config["vision_config"] |= vision | {"image_size": [448, 448], "patch_size": [14, 14]}
    config |= {"tie_word_embeddings": False, "downsample_ratio": 0.5, "image_seq_length": 256}
    folder = tmp_path / "eight_b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class TestArithmetic:
    def test_of_full_training_in_32_bits(self) -> None:
        memory = estimate(SIZE, STEP)
        reading, sampling, forward, backward, stepping = memory.phases.values()
        assert memory.always == {"weights": 1160 * 4, "optimizer": 1160 * 8}
        assert forward["gradients so far"] == backward["gradients"] == stepping["gradients"] == 1160 * 4
        assert backward["gradients not yet added"] == 1160 * 4
        # keys and values of 2 layers: of a row of the prompt's 10 and twice 3 columns, and of the 10 alone
        assert forward["KV cache"] == 2 * 2 * 4 * (16 + 10) * 4
        assert backward["gradients of keys and values"] == 2 * 2 * 4 * 16 * 4
        # 4 prompts of 10 columns and 2 completions of 3, and the prompts once more
        assert sampling["KV cache"] == 2 * 2 * 4 * 4 * (16 + 10) * 4
        assert reading["KV cache"] == 2 * 2 * 4 * 4 * 10 * 4
        assert sampling["logits"] == 4 * 4 * 2 * 32 * 4
        assert memory.peak == 1160 * 12 + max(sum(phase.values()) for phase in memory.phases.values())

    def test_sharding_divides_what_is_kept(self) -> None:
        alone = estimate(SIZE, STEP)
        sharded = estimate(SIZE, replace(STEP, devices=4, is_sharded=True))
        assert sharded.always == {name: size / 4 for name, size in alone.always.items()}
        assert sharded.phases["sampling"]["gathered weights"] == 1160 * 4  # the whole model
        assert (
            sharded.phases["forward"]["gathered weights"] == (160 + 1000) * 4
        )  # two layers: here that is all
        assert alone.phases["sampling"]["gathered weights"] == 0
        offloaded = estimate(SIZE, replace(STEP, devices=4, is_sharded=True, is_offloaded=True))
        assert sum(offloaded.always.values()) == 0
        assert estimate(SIZE, replace(STEP, devices=4)).always["gradient buckets"] == 1160 * 4

    def test_of_qlora(self) -> None:
        size = replace(SIZE, adapter_parameters=20)
        step = replace(
            STEP, weight_bytes=2.0, compute_bytes=2.0, layer_bytes=0.5, optimizer_bytes=2.0,
            trained=frozenset({"language"}),
        )  # fmt: skip
        assert estimate(size, step).always == {
            "weights": 1000 * 0.5 + 160 * 2 + 20 * 4, "optimizer": 20 * 2
        }  # fmt: skip

    def test_recomputation_saves_and_pictures_cost(self) -> None:
        def activations(**changes) -> float:
            return estimate(replace(SIZE, layers=20), replace(STEP, **changes)).phases["forward"][
                "activations"
            ]

        assert activations(is_recomputed=True) < 0.3 * activations()
        assert activations(trained=frozenset({"language"})) < activations()
        assert activations(micro_batch=2) == 2 * activations()

    def test_what_is_given_is_not_sampled(self) -> None:
        assert list(estimate(SIZE, replace(STEP, samples=False)).phases) == [
            "forward", "backward", "optimizer step"
        ]  # fmt: skip


def test_memory_is_what_a_real_model_holds() -> None:
    policy = GenerativeRMPolicy("tiny")
    step = Step(
        prompts=4, micro_batch=2, group=8, prompt_tokens=100, picture_tokens=0, completion_tokens=10,
        has_reference=True,
    )  # fmt: skip
    memory = estimate(size_of(policy.model), step)
    optimizer = torch.optim.AdamW([p for _, p in policy.parts()["language"]])
    for _, parameter in policy.parts()["language"]:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    weights = sum(p.numel() * 4 for p in policy.parameters())
    moments = sum(t.numel() * t.element_size() for t in states)
    assert memory.always == {"weights": weights, "optimizer": moments, "reference": weights}
    assert memory.phases["optimizer step"]["gradients"] == moments / 2
    batch = policy.encode_turns([("red " * 10, [])], ["x"])
    layers = policy.read(batch).cache.layers
    held = sum(t.numel() * 4 for layer in layers for t in (layer.keys, layer.values))  # type: ignore[attr-defined]
    per_token = held / batch.input_ids.shape[1]
    # a row of the prompt and its completions, and the prompt alone, of which it was made
    assert memory.phases["sampling"]["KV cache"] == 4 * (100 + 8 * 10 + 100) * per_token


def test_logits_are_counted_as_they_are_made() -> None:
    assert signature(token_logprobs).parameters["chunk"].default == LOGIT_CHUNK


class TestConfigurations:
    def test_a_size_is_that_of_the_model(self) -> None:
        size, policy = model_size("tiny", rank=4), GenerativeRMPolicy("tiny")
        counts = [
            size.layer_parameters,
            size.other_parameters,
            size.projector_parameters,
            size.vision_parameters,
        ]
        assert sum(counts) == sum(p.numel() for p in policy.parameters())
        parts = {part: sum(p.numel() for _, p in named) for part, named in policy.parts().items()}
        assert counts[0] + counts[1] == parts["language"]
        assert counts[2:] == [parts["projector"], parts["vision"]]
        config = policy.model.config
        assert (size.layers, size.width) == (
            config.text_config.num_hidden_layers,
            config.text_config.hidden_size,
        )
        adapted = GenerativeRMPolicy("tiny", LoRA(rank=4)).parts()["language"]
        assert size.adapter_parameters == sum(p.numel() for _, p in adapted)

    @pytest.mark.parametrize("trainer", ["cpu", "single_gpu", "qlora", "ddp", "fsdp", "fsdp_multi_node"])
    def test_every_trainer_can_be_planned(self, trainer: str, capsys) -> None:
        files = [
            CONFIGS / "trainer" / "cpu.yaml",
            CONFIGS / "stage3.yaml",
            CONFIGS / "trainer" / f"{trainer}.yaml",
        ]
        devices = {"ddp": 4, "fsdp": 4, "fsdp_multi_node": 16}.get(trainer, 1)
        _, step = read(merged(files), Lengths(devices=devices))
        assert (step.devices, step.is_sharded) == (devices, "fsdp" in trainer)
        assert (step.prompts, step.micro_batch, step.group, step.completion_tokens) == (16, 16, 8, 144)
        assert step.compute_bytes == (4.0 if trainer == "cpu" else 2.0)
        assert (step.layer_bytes is not None) == (trainer == "qlora")
        assert step.optimizer_bytes == (2.0 if trainer == "qlora" else 8.0)
        assert step.trained == {"language", "projector", "vision"}
        main([*(f"--config={file}" for file in files), f"--devices={devices}", "--memory_gib=24"])
        out = capsys.readouterr().out
        assert f"one of {devices} device(s)" in out
        assert "of 24.0 GiB: fits" in out

    def test_what_does_not_fit_is_said_not_to(self, eight_b: Path, tmp_path: Path, capsys) -> None:
        """On a 24 GB card: in 16 bits no, in 4 bits yes."""
        mine = tmp_path / "mine.yaml"
        mine.write_text(
            f"model: {{policy: {{init_args: {{model_name: {eight_b}}}}}, micro_batch_size: 1}}\n"
            "data: {batch_size: 2}\n"
        )
        for trainer, verdict in (("single_gpu", "does not fit"), ("qlora", "fits")):
            files = [CONFIGS / "stage1.yaml", CONFIGS / "trainer" / f"{trainer}.yaml", mine]
            main([*(f"--config={file}" for file in files), "--prompt_tokens=2048", "--memory_gib=24"])
            assert f"of 24.0 GiB: {verdict}" in capsys.readouterr().out

    def test_the_size_of_a_model_without_weights(self, eight_b: Path) -> None:
        size = model_size(str(eight_b))
        assert size.layer_parameters + size.other_parameters == pytest.approx(8.19e9, rel=0.01)
        assert size.vision_parameters == pytest.approx(0.30e9, rel=0.03)

    def test_micro_batches_that_take_what_fits_are_planned_with_one(self, tmp_path: Path) -> None:
        auto = tmp_path / "auto.yaml"
        auto.write_text("model: {micro_batch_size: auto}")
        _, step = read(merged([CONFIGS / "trainer" / "cpu.yaml", CONFIGS / "stage3.yaml", auto]), Lengths())
        assert step.micro_batch == 1

    def test_a_scalar_is_of_one_candidate_and_writes_nothing(self) -> None:
        files = [CONFIGS / "trainer" / "cpu.yaml", CONFIGS / "discriminative.yaml"]
        _, step = read(merged(files), Lengths())
        assert (step.prompts, step.completion_tokens, step.samples) == (32, 0, False)

    def test_devices_are_those_of_all_nodes(self) -> None:
        assert device_count({"accelerator": "cpu"}) == 1
        assert device_count({"devices": [0, 2], "num_nodes": 3}) == 6
        with pytest.raises(ValueError, match="no GPU here; say --devices"):
            device_count({"accelerator": "gpu", "devices": "auto"})

    def test_a_missing_file_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"nowhere\.yaml: no such configuration"):
            merged(["nowhere.yaml"])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"rank": 0, "recompute": False}, {"rank": 8, "recompute": True}])
def test_the_plan_is_near_the_measured_peak(options: dict) -> None:
    """Of two RL steps of a model of 20 M weights, in a process of its own."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's /proc")
    small_blocks = {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }  # freed is given back
    environment = os.environ | small_blocks | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.measure_peak", json.dumps(options)]
    out = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    found = json.loads(out.stdout.splitlines()[-1])
    assert found["measured"] > 1e8  # more than the weights alone
    assert found["planned"] == pytest.approx(found["measured"], rel=0.2)
