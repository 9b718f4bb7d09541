"""The measuring scripts, on the smallest case there is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from experiments import bench_scaling as scaling
from experiments.bench_scaling import HEADLINE, Point
from experiments.profile_step import profile_step
from experiments.profiled import peak_flops

PEER_KEYS = {
    "peer", "prompts", "group", "completion", "threads", "step_seconds", "median_step_seconds", "peak_rss_gb",
}  # fmt: skip


@pytest.fixture
def workload(tmp_path: Path) -> str:
    with (tmp_path / "workload.jsonl").open("w") as file:
        for i in range(3):
            Image.new("RGB", (64, 64), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
            row = {"image": f"{i}.png", "prompt": "the red dog " * (i + 1), "label": "AB"[i % 2]}
            print(json.dumps(row), file=file)
    return str(tmp_path / "workload.jsonl")


def test_a_step_is_profiled(workload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    found = profile_step("tiny", workload, prompts=1, group=2, completion=5, steps=2, threads=1)
    assert found.keys() >= PEER_KEYS | {"rollout_seconds", "learn_seconds", "tokens_per_second"}
    assert found["completion"] == 5
    assert len(found["step_seconds"]) == 2  # the first of three is not timed
    assert found["rollout_seconds"] + found["learn_seconds"] == pytest.approx(
        found["median_step_seconds"], abs=2e-3
    )
    assert found["teraflop_per_step"] >= 0
    with pytest.raises(ValueError, match=r"workload.jsonl has 3 prompts, 4 are needed"):
        profile_step("tiny", workload, prompts=2, group=2, completion=5, steps=1)


def test_peak_is_that_of_a_matrix_product() -> None:
    assert 1e7 < peak_flops(torch.device("cpu"), torch.float32, size=64) < 1e15


def record(point: Point, peer: str, **measured: Any) -> dict[str, Any]:
    return vars(point) | {"peer": peer, "machine": "2 x CPU", "python": "3", "torch": "2"} | measured


def test_points_are_measured_once_and_both_sides_next_to_each_other(tmp_path: Path) -> None:
    points = list(scaling.grid())
    assert points[0] == HEADLINE
    assert len(points) == len(set(points)) == 1 + 5 + 4 + 4
    done = [record(HEADLINE, "lit_msrl"), record(HEADLINE, "trl"), record(points[1], "lit_msrl")]
    left = list(scaling.missing(done))
    assert len(left) == 2 * 14 - 3
    assert left[:3] == [(points[1], "trl"), (points[2], "lit_msrl"), (points[2], "trl")]


@pytest.mark.slow
def test_a_grid_is_measured_drawn_and_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = tmp_path / "peer.py"
    line = {"peer": "trl", "median_step_seconds": 30.0, "peak_rss_gb": 4.0}
    peer.write_text(
        "import pathlib, sys\n"
        f"pathlib.Path(sys.argv[2]).mkdir(exist_ok=True)\nprint('noise')\nprint('''{json.dumps(line)}''')"
    )
    monkeypatch.setattr(scaling, "GRID", {"prompt": (256, 1024), "group": (8,), "completion": (128,)})
    ours = {"median_step_seconds": 6.0, "peak_rss_gb": 1.5, "prompt_tokens": 1031}
    known = [record(point, "lit_msrl", **ours) for point in scaling.grid()]
    (tmp_path / "points.jsonl").write_text("".join(json.dumps(each) + "\n" for each in known))
    (tmp_path / "page.md").write_text(f"before\n{scaling.START}\nold\n{scaling.END}\nafter\n")
    paths = {"points": tmp_path / "points.jsonl", "plot": tmp_path / "plot.png", "text": tmp_path / "page.md"}
    points, plot, text = map(str, paths.values())
    scaling.bench_scaling(sys.executable, str(peer), points=points, plot=plot, text=text)
    assert len(scaling.read(paths["points"])) == 2 * len(known)
    assert paths["plot"].stat().st_size > 1000
    page = paths["text"].read_text()
    assert "| 4 | 1031 | 8 | 128 | 6.00 | 30.00 | 1/5.0 | 1.50 | 4.00 | 1/2.7 |" in page
    assert "old" not in page
    assert page.startswith("before")
    assert page.endswith("after\n")


def test_a_point_that_fails_says_why(tmp_path: Path) -> None:
    sick = [sys.executable, "-c", "raise SystemExit('no memory')"]
    assert scaling.measure("trl", sick, limit=60) == {"peer": "trl", "left_out": "no memory"}
    mute = [sys.executable, "-c", ""]
    assert scaling.measure("trl", mute, limit=60) == {"peer": "trl", "left_out": "printed nothing"}
    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert scaling.measure("trl", slow, limit=0.2) == {"peer": "trl", "left_out": "longer than 0 s"}


def test_both_sides_stand_where_the_prompt_was_counted() -> None:
    records = [
        record(Point(prompt=256), "lit_msrl", peak_rss_gb=1.0, prompt_tokens=300),
        record(Point(prompt=256), "trl", peak_rss_gb=2.0),
        record(Point(prompt=512), "trl", peak_rss_gb=3.0),
    ]
    assert scaling.on_axis(records, "lit_msrl", "prompt", "peak_rss_gb") == {300: 1.0}
    assert scaling.on_axis(records, "trl", "prompt", "peak_rss_gb") == {300: 2.0, 512: 3.0}
    assert "| 1 | 300 | 8 | 128 |" in scaling.table(records)


def test_a_machine_that_does_not_name_its_processor(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nBogoMIPS : 50.00\n")
    for info in (tmp_path / "cpuinfo", tmp_path / "nothing"):
        count, name = scaling.machine(info)["machine"].split(" x ")
        assert int(count) >= 1
        assert name
