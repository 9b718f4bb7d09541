"""The script for a machine with a GPU, in miniature on a CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import bench_accelerator as bench
from experiments.accelerator_parts import Bench, fsdp, profile_1b, profile_8b, qlora
from experiments.random_internvl import SHAPES, random_policy, workload
from lit_msrl.adapters import LoRA
from lit_msrl.cli import run
from lit_msrl.sizes import size_of
from tests.experiments.made import write_rows

TINY = Bench(tiny=True)
CPU = torch.device("cpu")


@pytest.mark.parametrize(("size", "weights"), [("1b", 0.90e9), ("8b", 8.49e9)])
def test_the_shapes_are_those_of_internvl(size, weights):
    """The published 1B has 0.9 B weights, the 8B 8.5 B."""
    policy, counted = random_policy(size, torch.device("meta"))
    assert counted.parameters == sum(p.numel() for p in policy.parameters())
    assert counted.parameters == pytest.approx(weights, rel=0.06)
    assert counted.vision_parameters == pytest.approx(0.30e9, rel=0.03)
    assert policy.backbone.config.image_seq_length == SHAPES[size].tile_tokens
    assert policy.backbone.patches_per_token == 4


def test_a_prompt_has_as_many_tokens_as_its_tiles_and_words():
    policy, _ = random_policy("tiny", CPU)
    (example,) = workload("tiny", 1, tiles=(2, 3), words=7)
    assert policy.backbone.picture_tokens(*example.media[0].frames[0].size) == 4 + 2
    assert [len(media.frames) for media in example.media] == [2, 3]
    assert len(example.prompt.split()) == 7


def test_weights_are_quantised_where_they_are():
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Linear4bit

    torch.manual_seed(0)
    policy, counted = random_policy("tiny", CPU, lora=LoRA(rank=2), four_bits=True)
    torch.manual_seed(0)
    plain, _ = random_policy("tiny", CPU)
    layers = [m for m in policy.modules() if isinstance(m, Linear4bit)]
    assert len(layers) == 2 * 7
    assert counted.layer_parameters == size_of(plain.model).layer_parameters
    packed = sum(layer.weight.numel() for layer in layers)
    assert packed == pytest.approx(counted.layer_parameters / 2, rel=0.01)
    assert all(layer.weight.quant_state.quant_type == "nf4" for layer in layers)  # type: ignore[union-attr]
    assert all(layer.weight.quant_state.nested for layer in layers)  # type: ignore[union-attr]
    weight = plain.layers()[0].mlp.up_proj.weight  # type: ignore[union-attr]
    small = policy.layers()[0].mlp.up_proj.base_layer.weight  # type: ignore[union-attr]
    error = (dequantize_4bit(small.data, small.quant_state) - weight).norm() / weight.norm()  # type: ignore[arg-type]
    assert 0 < error < 0.15


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed.nn.functional.all_gather:FutureWarning")  # Lightning's
@pytest.mark.parametrize("part", [qlora, fsdp, profile_1b, profile_8b])
def test_a_part_trains_in_miniature(part):
    found = part(TINY)
    assert found["model"] == "tiny"
    assert len(found["step_seconds"]) == 1
    assert found["completion"] == 4
    assert found["planned_gb"] >= 0
    assert found["prompt_tokens"] > 8
    assert not torch.distributed.is_initialized()


def test_the_accuracy_of_the_demo_is_read_from_its_judgements(monkeypatch):
    def made(folder: str, **options: Any) -> None:
        (Path(folder) / "evaluations").mkdir()
        rows = [{"preferred": p, "winner": 1} for p in (1, 2, 1, None)]
        write_rows(Path(folder) / "evaluations" / "msrl.jsonl", *rows)
        assert options["options"] == ["--trainer.accelerator=cpu", "--trainer.max_steps=1"]

    monkeypatch.setattr(bench, "pipeline", made)
    assert bench.demo(TINY) == {"accuracy_msrl": 0.5}


@pytest.mark.slow
def test_a_peer_runs_on_the_same_folder(tmp_path):
    script = tmp_path / "peer.py"
    script.write_text(
        "import json, pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[2])\n"
        "rows = (folder / 'workload.jsonl').read_text().splitlines()\n"
        "print(json.dumps({'peer': 'trl', 'rows': len(rows), 'options': sys.argv[3:],"
        " 'model': (folder / 'config.json').is_file()}))"
    )
    found = bench.peer(Bench(tiny=True, peer_python=sys.executable, peer_script=str(script)))
    assert found["peer"]["rows"] == 2
    assert found["peer"]["model"]
    assert found["peer"]["options"] == ["--prompts=1", "--group=2", "--completion=4", "--steps=1"]
    assert found["lit_msrl"]["completion"] == 4
    with pytest.raises(ValueError, match="needs --peer_python and --peer_script"):
        bench.peer(TINY)


def test_every_part_is_a_line_and_one_that_fails_says_why(monkeypatch, tmp_path, capsys):
    def measured(side: str, command: list[str], limit: float) -> dict:
        assert command[0] == sys.executable
        assert "--tiny=true" in command
        return {"left_out": "out of memory"} if "--part=fsdp" in command else {"seconds": 1.0}

    monkeypatch.setattr(bench, "measure", measured)
    bench.bench_accelerator(tiny=True, append=str(tmp_path / "lines.jsonl"))
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["part"] for line in printed] == ["qlora", "fsdp", "demo", "profile_1b", "profile_8b"]
    assert printed[1]["left_out"] == "out of memory"
    assert printed[0]["device"] == "cpu"
    assert (tmp_path / "lines.jsonl").read_text().count("\n") == 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    with pytest.raises(SystemExit):
        run(bench.bench_accelerator)
    assert "error: there is no GPU here; --tiny=true" in capsys.readouterr().err
