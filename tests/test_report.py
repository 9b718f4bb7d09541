"""The report: self-contained, safe with what a model wrote, whole or absent."""

import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from torch.utils.tensorboard.writer import SummaryWriter

from lit_msrl import cards, curves, report
from lit_msrl.cards import JudgementCard
from lit_msrl.curves import read_curves
from lit_msrl.metrics import compare, summarise
from lit_msrl.prompts import View, render, write
from lit_msrl.records import JudgementRecord
from lit_msrl.report import RunSummary, StageSummary, print_table, write_report
from lit_msrl.types import Media, PreferenceExample

HOSTILE = """<script>alert(1)</script>"><img src=x onerror=alert(2)> {{ 7 * 7 }} & 'quoted'"""


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def sources(self) -> list[str]:
        return [value or "" for name, value in self.attributes if name in ("src", "href", "srcset", "action")]


def picture(colour: str, size: int = 8) -> Image.Image:
    return Image.new("RGB", (size, size), colour)


IMAGE = PreferenceExample(
    "i1", "image understanding", "Which colour?", 1, ("Red.", "Blue."), (Media("image", (picture("red"),)),)
)
CLIPS = PreferenceExample(
    "v1",
    "video generation",
    "a red light turns green",
    2,
    None,
    tuple(Media("video", (picture(first), picture("green"))) for first in ("blue", "red")),
    ("blue, then green", "red, then green"),
)


def card(
    example: PreferenceExample = IMAGE, *, view: View = "visual", swapped=False, text: str | None = None
):
    prompt = render(example, view=view, swapped=swapped)
    text = text or write(prompt, think="It is so.", answer=prompt.label or "A", caption="as seen")
    return JudgementCard(prompt, text, text.endswith(f">{prompt.label}</answer>"), {"accuracy": 1.0}, "msrl")


def records(right: int) -> list[JudgementRecord]:
    return [
        JudgementRecord(str(i), task, order, 0, 1, 1 if i < right else 2, True, None, "")
        for i in range(8)
        for task in (("image understanding", "video generation")[i % 2],)
        for order in ("AB", "BA")
    ]


def run(**changes) -> RunSummary:
    judged = {"base": records(4), "generative_baseline": records(5), "msrl": records(7)}
    curve = (list(range(0, 60, 2)), [0.5 + i / 100 for i in range(30)])
    stages = (
        StageSummary("base", "base", 10, 1.5, {"text": 0.5, "caption": 0.5, "visual": 0.48}),
        StageSummary("stage3", "msrl", 60, 75.0, {"visual": 0.875}, {"val/accuracy": curve, "epoch": curve}),
        StageSummary("stage3", "generative_baseline", 60, 70.0, {"visual": 0.625}, {"train/loss": curve}),
    )
    summary = RunSummary(
        arms={arm: summarise(r) for arm, r in judged.items()},
        comparison=compare(judged["msrl"], judged["generative_baseline"]),
        stages=stages,
        cards=[card(), card(CLIPS)],
        seconds=200.0,
        seed=7,
        versions={"torch": "2"},
        settings={"group_size": 8},
    )
    return replace(summary, **changes)


def page_of(folder: Path, summary: RunSummary) -> Page:
    return Page(write_report(folder, summary).read_text(encoding="utf-8"))


def test_page_is_self_contained(tmp_path):
    html = write_report(tmp_path, run()).read_text(encoding="utf-8")
    page = Page(html)
    assert "http://" not in html
    assert "https://" not in html
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert "url(" not in html
    assert len(page.sources) == 1 + 2 * (1 + 2)  # a picture; two clips, each moving and as two frames
    assert all(
        source.startswith(("data:image/png;base64,", "data:image/gif;base64,")) for source in page.sources
    )


def test_what_models_and_data_say_is_escaped(tmp_path):
    hostile = replace(IMAGE, prompt=HOSTILE, candidates=(HOSTILE, "b"), captions=(HOSTILE,))
    written = write(render(hostile, swapped=False), think=HOSTILE, answer="A", caption=HOSTILE)
    summary = run(
        cards=[card(hostile, text=written), card(text=HOSTILE), card(hostile, view="caption")],
        settings={HOSTILE: HOSTILE},
        stages=[StageSummary(HOSTILE, HOSTILE, 1, 1.0, {"text": 1.0}, {HOSTILE: ([0, 1], [0.0, 1.0])})],
    )
    page = page_of(tmp_path, summary)
    assert "script" not in page.tags
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert all(source.startswith("data:") for source in page.sources)
    assert page.text.count("<script>alert(1)</script>") >= 8
    assert "{{ 7 * 7 }}" in page.text


def test_numbers_beside_the_page(tmp_path):
    summary = run()
    write_report(tmp_path, summary)
    numbers = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert list(numbers["arms"]) == ["base", "generative_baseline", "msrl"]
    msrl = numbers["arms"]["msrl"]
    assert {"accuracy", "ci95", "per_task", "swap_consistency", "parse_failures"} <= set(msrl)
    assert msrl["accuracy"] == 7 / 8
    assert msrl["per_task"]["video generation"]["accuracy"] == 3 / 4
    assert numbers["comparison"]["msrl_minus_baseline"] == 2 / 8
    assert numbers["comparison"]["p_value"] == summary.comparison["p_value"]
    assert "difference" not in numbers["comparison"]
    assert numbers["stages"][0] == {
        "name": "base", "arm": "base", "steps": 10, "seconds": 1.5,
        "accuracy_after": {"text": 0.5, "caption": 0.5, "visual": 0.48},
    }  # fmt: skip
    assert (numbers["seconds"], numbers["seed"], numbers["versions"]) == (200.0, 7, {"torch": "2"})


def test_numbers_are_valid_json_whatever_the_settings(tmp_path):
    odd = {
        "inf": math.inf,
        "nan": np.float32("nan"),
        "steps": np.int64(3),
        "path": Path("a/b"),
        "pair": (1, None),
    }
    write_report(tmp_path, run(settings=odd))
    read = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["settings"]
    assert read == {"inf": None, "nan": None, "steps": 3, "path": str(Path("a/b")), "pair": [1, None]}


def test_headline_says_what_the_numbers_say(tmp_path):
    text = page_of(tmp_path, run()).text
    assert "On 8 held-out preferences" in text
    assert "87.5 %" in text
    assert "does not tell the two apart" in text  # two items of eight
    clear = {"difference": -0.25, "ci95": [-0.3, -0.2], "p_value": 0.001, "mcnemar_p": 0.001}
    assert "The stages lost 25.0 points" in page_of(tmp_path, run(comparison=clear)).text


def test_a_run_of_one_arm_without_stages_or_cards(tmp_path):
    summary = run(arms={"base": summarise(records(4)[:1])}, comparison={}, stages=[], cards=[])
    text = page_of(tmp_path, summary).text
    assert "Base" in text
    assert "Learning curves" not in text
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["comparison"] == {}


def test_card_shows_candidates_in_the_order_the_judge_saw():
    shown = cards.as_shown(card(IMAGE, swapped=True))
    assert [shown["candidates"][letter].words for letter in "AB"] == ["Blue.", "Red."]
    assert (shown["preferred"], shown["chosen"]) == ("B", "B")
    clips, turned = cards.as_shown(card(CLIPS)), cards.as_shown(card(CLIPS, swapped=True))
    assert clips["candidates"]["A"] == turned["candidates"]["B"]
    assert clips["candidates"]["A"].caption == "blue, then green"
    captioned = cards.as_shown(card(CLIPS, view="caption", swapped=True))
    assert captioned["candidates"]["A"].caption == "red, then green"
    assert not captioned["candidates"]["A"].frames


def test_card_shows_a_broken_judgement_as_written(tmp_path):
    assert cards.as_shown(card(text="<think>no end"))["sections"] == []
    page = page_of(tmp_path, run(cards=[card(text="<think>no end")]))
    assert "As written <think>no end" in page.text
    assert "✗ wrong" in page.text


def test_large_pictures_are_shrunk_and_not_pixelated():
    large, small = (cards.exhibit(Media("image", (picture("red", n),)), None) for n in (2000, 32))
    assert small.pixelated
    assert not large.pixelated
    assert len(large.frames[0]) < 10_000


def test_ladder_climbs_from_the_base_to_each_arm():
    ladders = report._ladders(run().stages)
    assert [(x["arm"], [s.name for s in x["stages"]]) for x in ladders] == [
        ("msrl", ["base", "stage3"]),
        ("generative_baseline", ["base", "stage3"]),
    ]
    assert {x["floor"] for x in ladders} == {0.4}
    assert report._ladders([StageSummary("base", "base", 1, 1.0, {"text": 0.21})])[0]["floor"] == 0.2


def test_chart_geometry():
    chart = curves.chart("reward/accuracy", ([10, 20, 30], [0.0, math.nan, 1.0]))
    assert chart is not None
    assert chart["raw"] == "0.00,96.00 100.00,4.00"
    assert (chart["first"], chart["last"], chart["low"], chart["high"]) == (10, 30, "0", "1")
    assert curves.chart("loss", ([1, 2], [3.0, 3.0])) is not None  # flat
    assert curves.chart("loss", ([1], [3.0])) is None
    assert curves.chart("loss", ([], [])) is None


def test_smoothing_keeps_a_constant_and_a_short_curve():
    np.testing.assert_allclose(curves.smoothed(np.full(50, 3.0)), 3.0)
    np.testing.assert_allclose(curves.smoothed(np.array([1.0, 5.0, 2.0])), [1.0, 5.0, 2.0])
    assert curves.smoothed(np.tile([0.0, 1.0], 50)).std() < 0.1


def test_accuracy_comes_first_and_bookkeeping_never():
    line = ([0, 1], [0.0, 1.0])
    tags = ["epoch", "rlvr/clip", "loss", "reward/total", "val/accuracy", "hp_metric"]
    shown = [chart["tag"] for chart in curves.charts(dict.fromkeys(tags, line))]
    assert shown == ["val/accuracy", "reward/total", "loss", "rlvr/clip"]


def test_curves_are_read_from_event_files(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(3):
            writer.add_scalar("reward/accuracy", step / 4, 10 * step)
    assert read_curves(tmp_path) == {"reward/accuracy": ([0, 10, 20], [0.0, 0.25, 0.5])}


def test_nothing_is_written_when_the_page_cannot_be(tmp_path):
    undecoded = replace(IMAGE, media=(Media("image", "somewhere.png"),))
    with pytest.raises(TypeError, match="not decoded"):
        write_report(tmp_path / "new", run(cards=[card(undecoded)]))
    assert not (tmp_path / "new").exists()


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    page = write_report(tmp_path, run())
    before = page.read_bytes()

    def full(self: Path, *args: object, **kwargs: object) -> None:
        self.touch()
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        write_report(tmp_path, run(seed=8))
    assert page.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_table_in_the_terminal(monkeypatch):
    out = StringIO()
    monkeypatch.setattr(report, "Console", lambda: Console(file=out, width=80))
    print_table(run(), Path("outputs/demo/report.html"))
    assert "image understanding" in out.getvalue()
    assert "87.5 [" in out.getvalue()
    assert "+25.0 points" in out.getvalue()
    assert "outputs/demo/report.html" in out.getvalue()
