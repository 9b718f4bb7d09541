"""Captions when something goes wrong, or somebody stops it: none lost, none asked for twice."""

from __future__ import annotations

import collections
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import openai._base_client
import pytest

from data_modules.captions import Captions
from lit_msrl.cli import run
from lit_msrl.outputs import Journal
from tests.endpoint import refused, said, serving
from tests.experiments.captioned import (
    TEXTS,
    captions,
    describe,
    levels,
    options,
    records,
    rows_of,
    write,
)
from tests.experiments.made import REPOSITORY


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(openai._base_client, "MAX_RETRY_DELAY", 0.02)


def fails(out: Path, data: str, url: str, capsys, *more: str) -> str:
    """The one line in which it ends."""
    with pytest.raises(SystemExit) as stop:
        run(lambda: write(out, data, url, *more))
    assert stop.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_what_may_pass_is_tried_again(tmp_path: Path):
    troubles = iter(["busy", "broken", "hung up", "slow"])

    def answer(request):
        trouble = next(troubles, None)
        if trouble == "busy":
            return (*refused(429, "slowly"), {"Retry-After": "0.01"})
        if trouble == "broken":
            return refused(500, "oops")
        if trouble == "hung up":
            raise ConnectionError
        if trouble == "slow":
            time.sleep(1)
        return describe(request)

    data, out = rows_of(tmp_path, 1), tmp_path / "captions.jsonl"
    with serving(answer) as server:
        assert write(out, data, server.url, "--timeout=0.5") == 0
    assert len(server.requests) == 5
    assert captions(out) == ["A picture of level 0."]


def test_as_long_as_the_server_says_it_is_not_asked(tmp_path: Path):
    told: dict[int, float] = {}
    early: list[float] = []

    def answer(request):
        level = levels(request)[0]
        if level not in told:
            told[level] = time.monotonic()
            return (*refused(429, "slowly"), {"Retry-After": "1"})
        early.append(time.monotonic() - told[level])
        return describe(request)

    data, out = rows_of(tmp_path, 2), tmp_path / "captions.jsonl"
    with serving(answer) as server:
        assert write(out, data, server.url) == 0
    assert len(early) == 2
    assert min(early) >= 0.99, "without the header it would be asked again after 20 ms"


def test_failures_are_recorded_with_their_reason_and_tried_again(tmp_path: Path, capsys):
    def answer(request):
        level = levels(request)[0]
        cut_off = said("A sentence that never")
        cut_off[1]["choices"][0]["finish_reason"] = "length"
        refusing = said("")
        refusing[1]["choices"][0]["message"]["refusal"] = "I cannot look at this."
        return {
            0: refused(400, "unsafe", "content_filter"),
            1: refusing,
            2: said("  "),
            3: cut_off,
        }.get(level) or describe(request)

    data, out = rows_of(tmp_path, 6), tmp_path / "captions.jsonl"
    with serving(answer) as server:
        assert write(out, data, server.url, "--concurrency=1") == 1
    reasons = {record["origin"]: record["error"] for record in records(out) if record["error"]}
    assert list(reasons) == [f"{data} row {row} field 'image'" for row in (1, 2, 3, 4)]
    assert [reason.split(" (")[0] for reason in reasons.values()] == [
        "refuses with status 400: unsafe",
        "refused",
        "the answer holds no text",
        "cut off at max_tokens=1024 before a sentence was whole",
    ]
    said_of_it = capsys.readouterr().out
    assert "2 captions written" in said_of_it
    assert "failed: 4; run the same command again to try them again" in said_of_it
    assert f"{data} row 2 field 'image': refused (I cannot look at this.)" in said_of_it
    with serving(describe) as server:
        assert write(out, data, server.url) == 0
        assert sorted(sum(map(levels, server.requests), [])) == [0, 1, 2, 3]
    assert len(captions(out)) == len(set(captions(out))) == 6
    assert len(Captions(str(out))._captions) == 6


def test_what_cannot_be_read_is_recorded_and_the_rest_is_captioned(tmp_path: Path, capsys):
    data = rows_of(tmp_path, 4)
    (tmp_path / "0.png").write_bytes(b"no picture")
    (tmp_path / "1.png").unlink()
    with Path(data).open("a") as file:
        file.write(json.dumps({**TEXTS, "image": "2.png", "winner": "first"}) + "\n")
    out = tmp_path / "captions.jsonl"
    with serving(describe) as server:
        assert write(out, data, server.url) == 1
        assert sorted(sum(map(levels, server.requests), [])) == [2, 3]
    errors = sorted(record["error"] for record in records(out) if record["error"])
    assert "0.png: not a readable picture" in errors[0]
    assert "1.png: no such file" in errors[1]
    assert "row 5: field 'winner' is 'first'" in errors[2]
    assert "failed: 3" in capsys.readouterr().out


def test_a_dead_endpoint_is_one_line(tmp_path: Path, capsys):
    with serving(describe) as server:
        url = server.url
    line = fails(tmp_path / "c.jsonl", rows_of(tmp_path, 3), url, capsys)
    assert f"endpoint {url}: cannot be reached" in line
    assert "0 captions were written" in line
    assert records(tmp_path / "c.jsonl") == []


def test_an_endpoint_that_dies_on_the_way_is_one_line_and_what_is_there_stays(tmp_path: Path, capsys):
    answered = []

    def answer(request):
        answered.append(1)
        return describe(request) if len(answered) <= 3 else refused(500, "out of memory")

    data, out = rows_of(tmp_path, 20), tmp_path / "captions.jsonl"
    with serving(answer) as server:
        line = fails(out, data, server.url, capsys, "--retries=0", "--concurrency=2")
        assert "8 requests in a row failed, the last one: refuses with status 500: out of memory" in line
        assert "3 captions were written" in line
        assert len(server.requests) <= 12
    with serving(describe) as server:
        assert write(out, data, server.url) == 0
        assert len(server.requests) == 17


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (refused(401, "no such key"), "status 401"),
        (refused(404, "no such model"), "status 404: no such model"),
        (refused(429, "pay first", "insufficient_quota"), "status 429: pay first"),
    ],
)
def test_what_no_request_can_overcome_is_one_line_at_once(tmp_path: Path, capsys, answer, message):
    with serving(lambda request: answer) as server:
        line = fails(
            tmp_path / "c.jsonl", rows_of(tmp_path, 9), server.url, capsys, "--retries=0", "--concurrency=1"
        )
        assert len(server.requests) == 1
    assert message in line


def test_the_key_is_the_environments_and_is_kept_nowhere(tmp_path: Path, capsys, caplog, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-key")
    caplog.set_level(logging.DEBUG)

    def answer(request):
        return describe(request) if levels(request)[0] else refused(400, "what is sk-secret-key doing here?")

    data, out = rows_of(tmp_path, 2), tmp_path / "captions.jsonl"
    with serving(answer) as server:
        assert write(out, data, server.url) == 1
    assert server.headers[0]["authorization"] == "Bearer sk-secret-key"
    printed = capsys.readouterr()
    assert "what is *** doing here?" in printed.out
    kept = "".join(path.read_text(errors="replace") for path in tmp_path.iterdir() if path.is_file())
    assert "secret" not in printed.out + printed.err + caplog.text + kept


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--out=captions.csv"], "a .jsonl or a .parquet file"),
        (["--max_words=0"], "--max_words=0: must be at least 1"),
        (["--endpoint=localhost"], "is no URL"),
        (["--endpoint=http://localhost:1", "--engine=HFEngine"], "give one of them"),
        (["--data.train.path=absent.jsonl"], "absent.jsonl: no such file"),
        (["--concurency=3"], "concurency"),
    ],
)
def test_options_that_cannot_work_are_one_line(tmp_path: Path, capsys, more, message):
    data = rows_of(tmp_path, 1)
    assert message in fails(tmp_path / "c.jsonl", data, "http://127.0.0.1:9/v1", capsys, *more)


def test_captions_of_other_models_are_not_mixed_in(tmp_path: Path):
    data, out = rows_of(tmp_path, 2), tmp_path / "captions.jsonl"
    with serving(describe) as server:
        write(out, data, server.url)
        with pytest.raises(
            ValueError, match="holds captions with model 'm', not 'other'; choose another --o"
        ):
            write(out, data, server.url, "--model=other")
        with pytest.raises(ValueError, match="holds captions with template 'full-"):
            write(out, data, server.url, "--max_words=50")
        assert len(server.requests) == 2


def test_a_line_that_was_broken_off_is_made_again(tmp_path: Path):
    data, out = rows_of(tmp_path, 4), tmp_path / "captions.jsonl"
    with serving(describe) as server:
        write(out, data, server.url, "--concurrency=1")
        whole = out.read_bytes()
        out.write_bytes(whole[: whole.rstrip().rfind(b"\n") + 40])
        assert write(out, data, server.url) == 0
        assert len(server.requests) == 5
    assert captions(out) == [f"A picture of level {level}." for level in range(4)]


def test_two_processes_do_not_write_one_file(tmp_path: Path):
    data, out = rows_of(tmp_path, 1), tmp_path / "captions.jsonl"
    journal = Journal(out)
    with serving(describe) as server:
        with pytest.raises(ValueError, match="another process is writing it"):
            write(out, data, server.url)
        journal.close()
        assert write(out, data, server.url) == 0
        assert len(server.requests) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_finishes_what_is_under_way(tmp_path: Path, capsys, number):
    asked: list[int] = []

    def answer(request):
        asked.append(1)
        if len(asked) == 4:
            os.kill(os.getpid(), number)
            time.sleep(0.3)
        return describe(request)

    data, out = rows_of(tmp_path, 12), tmp_path / "captions.jsonl"
    with serving(answer) as server:
        assert write(out, data, server.url, "--concurrency=2") == 130
        under_way = len(server.requests)
        assert 4 <= under_way < 12
        assert len(captions(out)) == under_way, "all that was asked was written down"
        err = capsys.readouterr().err
        assert "stopping: waiting for what is under way" in err
        assert "interrupted; run the same command again to go on" in err
        assert write(out, data, server.url) == 0
        assert len(server.requests) == 12


def test_a_second_interruption_does_not_wait(tmp_path: Path):
    release = threading.Event()

    def answer(request):
        if levels(request)[0] == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)
            release.wait(20)
        return describe(request)

    data, out = rows_of(tmp_path, 4), tmp_path / "captions.jsonl"
    with serving(answer) as server:
        assert write(out, data, server.url, "--concurrency=1") == 130
        assert captions(out) == ["A picture of level 0.", "A picture of level 1."]
        release.set()


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_only_what_was_under_way_is_asked_twice(tmp_path: Path):
    held, release = threading.Semaphore(0), threading.Event()
    asked: collections.Counter[int] = collections.Counter()

    def answer(request):
        (level,) = levels(request)
        asked[level] += 1
        if asked.total() > 7 and not release.is_set():
            held.release()
            release.wait(60)
        return describe(request)

    data, out = rows_of(tmp_path, 20), tmp_path / "captions.jsonl"
    with serving(answer) as server:
        arguments = options(out, data, server.url, "--concurrency=3")
        words = [sys.executable, str(REPOSITORY / "experiments" / "caption.py"), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
        for _ in range(3):
            assert held.acquire(timeout=120)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        before = {record["caption"] for record in records(out)}
        release.set()
        assert len(before) == 7
        assert write(out, data, server.url) == 0
    assert sorted(asked.values()) == [1] * 17 + [2] * 3
    assert captions(out) == sorted(f"A picture of level {level}." for level in range(20))
    assert before == {f"A picture of level {level}." for level in asked if asked[level] == 1} & before
