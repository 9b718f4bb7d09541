"""The endpoint client against a real server."""

from __future__ import annotations

import base64
import io
import threading
import time

import pytest
from PIL import Image

from lit_msrl.endpoint import Endpoint, message
from lit_msrl.prompts import MEDIA_MARK, render
from lit_msrl.types import Media, PreferenceExample
from tests.endpoint import refused, said, serving, text_of


def ask(endpoint: Endpoint, *texts: str, temperature: float | None = 0.0):
    found = endpoint.complete([message(t, ()) for t in texts], max_tokens=9, temperature=temperature)
    return dict(found)


def test_replies_belong_to_their_questions_and_many_are_asked_at_once():
    gate = threading.Barrier(3, timeout=20)

    def answer(request):
        gate.wait()  # nobody is answered before three have asked
        return said(text_of(request).upper(), tokens=len(text_of(request)))

    with serving(answer) as server:
        found = ask(Endpoint(server.url, "m", concurrency=3, retries=0), *"abcdef")
    assert {i: r.text for i, r in found.items()} == dict(enumerate("ABCDEF"))
    assert {r.tokens for r in found.values()} == {1}
    assert server.most_at_once == 3
    assert {(r["model"], r["temperature"], r["max_completion_tokens"]) for r in server.requests} == {
        ("m", 0.0, 9)
    }


def test_the_server_may_choose_the_temperature():
    with serving(lambda request: said("x")) as server:
        ask(Endpoint(server.url, "m"), "a", temperature=None)
    assert "temperature" not in server.requests[0]


def test_what_may_pass_is_tried_again():
    answers = [refused(503, "busy"), refused(429, "slowly"), said("at last")]
    with serving(lambda request: answers.pop(0)) as server:
        found = ask(Endpoint(server.url, "m", retries=2), "a")
    assert found[0].text == "at last"
    assert len(server.requests) == 3


def test_the_key_is_the_environments_and_stays_out_of_errors(monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with (
        serving(lambda request: refused(401, "no such key")) as server,
        pytest.raises(ValueError, match=r"refuses with status 401: no such key") as caught,
    ):
        ask(Endpoint(server.url, "m", retries=0), "a")
    assert server.headers[0]["authorization"] == "Bearer sk-secret"
    assert "secret" not in str(caught.value) + caplog.text + repr(Endpoint(server.url, "m"))


def test_a_dead_endpoint_is_one_line():
    with serving(lambda request: said("x")) as server:
        url = server.url
    with pytest.raises(ValueError, match=f"endpoint {url}: cannot be reached .*; is it running"):
        ask(Endpoint(url, "m", retries=0), "a", "b", "c")


def test_an_endpoint_that_hangs_is_one_line():
    with (
        serving(lambda request: time.sleep(1) or said("x")) as server,
        pytest.raises(ValueError, match="no answer in time"),
    ):
        ask(Endpoint(server.url, "m", retries=0, timeout=0.2), "a")


def test_what_a_server_will_not_answer_is_unread():
    with serving(lambda request: refused(400, "unsafe", "content_filter")) as server:
        assert ask(Endpoint(server.url, "m", retries=0), "a")[0].text == ""
    with (
        serving(lambda request: refused(400, "no such option", "bad")) as server,
        pytest.raises(ValueError, match="400"),
    ):
        ask(Endpoint(server.url, "m", retries=0), "a")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (("localhost:8000", "m"), "is no URL"),
        (("http://me:key@host/v1", "m"), "must not hold a key"),
        (("http://host/v1?key=1", "m"), "must not hold a key"),
        (("http://host/v1", ""), "the model's name"),
        (("http://host/v1", "m", 0), "concurrency is 0"),
    ],
)
def test_settings_that_cannot_work(fields, problem):
    with pytest.raises(ValueError, match=problem):
        Endpoint(*fields)


def test_pictures_travel_in_their_places():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    media = (Media("video", tuple(frames[:2])), Media("video", (frames[2],)))
    example = PreferenceExample("x", "video generation", "a cat", 1, media=media)
    prompt = render(example, style="compact", swapped=True)
    parts = message(prompt.text, prompt.media)["content"]
    kinds = [part["type"] for part in parts]
    assert kinds == ["text", "image_url", "text", "image_url", "image_url", "text"]
    first = parts[1]["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(first))).getpixel((0, 0)) == (0, 0, 255), "candidate 2 is A"
    pieces = [part["text"] for part in parts if part["type"] == "text"]
    assert MEDIA_MARK.join(pieces) == prompt.text, "not a space less: a trained judge has learned them"
    assert message("only text", ())["content"] == "only text"
