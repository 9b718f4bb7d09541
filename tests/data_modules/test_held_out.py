"""What a benchmark tests on is not trained on, and is counted."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import pytest
import torch

from data_modules import DataReport, MultimodalPreferenceDataModule, Rows
from data_modules.benchmarks import load
from data_modules.datasets.sharegptvideo_dpo import clip_id
from data_modules.media import Decoder
from lit_msrl.types import Media

CLIPS = [f"v_{i}" for i in range(120)]
PAIR = "<image>\nQuestion: what?\nAnswer 1: a dog\nAnswer 2: a cat\nPlease evaluate both answers"


def upstream(clip: str) -> dict:
    return {"id": clip, "video": clip, "prompt": "what?", "chosen": "a cat", "rejected": "a dog"}


def unified(clip: str) -> dict:
    turns = [{"from": "human", "value": PAIR}, {"from": "gpt", "value": "Answer 2 is better"}]
    frames = [f"ShareGPTVideo/{clip}/{i}.jpg" for i in (1, 2)]
    return {"id": clip, "conversations": turns, "images": frames}


FORMS = {
    "upstream": upstream,
    "files": lambda clip: upstream(clip) | {"video": f"chunk_3/{clip}.mp4"},
    "unified": unified,
}


def table(folder: Path, form: str) -> str:
    path = folder / f"{form}.jsonl"
    path.write_text("".join(json.dumps(FORMS[form](clip)) + "\n" for clip in CLIPS))
    return str(path)


def benchmark_clips(folder: Path) -> set[str]:
    """The clips of the benchmark."""
    return {Path(str(e.media[0].source)).name for e in load("sharegptvideo", table(folder, "upstream"))}


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "example", lambda self, example: example)


@pytest.mark.parametrize("form", FORMS)
def test_training_and_benchmark_share_no_clip(form, tmp_path):
    source = Rows(table(tmp_path, form), "sharegptvideo_dpo")
    trained = {clip_id(example.media[0]) for example in source.examples()}
    kept_back = benchmark_clips(tmp_path)
    assert len(kept_back) > 3
    assert not trained & kept_back
    assert trained | kept_back == set(CLIPS)
    assert source.counted() == {"rows": 120, "examples": len(trained), "ties": 0, "held_out": len(kept_back)}


def test_the_benchmark_reads_the_same_clips_from_files(tmp_path):
    names = {Path(str(e.media[0].source)).stem for e in load("sharegptvideo", table(tmp_path, "files"))}
    assert names == benchmark_clips(tmp_path)


def test_a_clip_of_bytes_has_no_name_and_is_not_held_out(tmp_path):
    assert clip_id(Media("video", b"0")) == ""
    path = tmp_path / "bytes.jsonl"
    path.write_text(json.dumps(upstream("v_1") | {"video": {"path": "v_1.mp4"}}))
    assert [e.id for e in Rows(str(path), "sharegptvideo_dpo").examples()] == ["v_1"]


class Nothing(L.LightningModule):
    """Learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("workers", [0, 2])
def test_held_out_clips_are_counted_and_said_each_epoch(workers, tmp_path, caplog):
    caplog.set_level("INFO", logger="lightning_utilities.core.rank_zero")
    source = Rows(table(tmp_path, "upstream"), "sharegptvideo_dpo")
    data = MultimodalPreferenceDataModule(
        source, Rows(source.path, "sharegptvideo_dpo", limit=60), batch_size=8, num_workers=workers
    )
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[DataReport()],
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Nothing(), data)
    held = benchmark_clips(tmp_path)
    early = len(held & set(CLIPS[:60]))
    assert trainer.callback_metrics["data/held_out"] == len(held) > early
    said = [r.getMessage() for r in caplog.records if "which a benchmark tests on" in r.getMessage()]
    line = "rows left out, which a benchmark tests on"
    validation = f"validation: {early} {line}"
    assert sorted(said) == [*(f"epoch {i}: {len(held)} {line}" for i in (0, 1)), validation, validation]
