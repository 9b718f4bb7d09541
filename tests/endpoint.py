"""A small OpenAI-compatible server on localhost."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

Answer = tuple[int, dict[str, Any]] | tuple[int, dict[str, Any], dict[str, str]]  # perhaps with headers
Answering = Callable[[dict[str, Any]], Answer]  # hangs up if it raises a ConnectionError


Scored = Sequence[tuple[str, float]]


def said(text: str, tokens: int = 5, scored: Scored | None = None) -> tuple[int, dict[str, Any]]:
    """A chat completion that says this; with ``scored`` it lists tokens and their log-probabilities."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    if scored is not None:
        listed = [{"token": t, "logprob": s, "bytes": None, "top_logprobs": []} for t, s in scored]
        choice["logprobs"] = {"content": listed, "refusal": None}
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    return 200, {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


def refused(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> tuple[int, dict[str, Any]]:
    """An error in the API's form."""
    return status, {"error": {"message": message, "code": code, "type": "x", "param": param}}


class Server:
    """What was asked, and where."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0


class _Patient(ThreadingHTTPServer):
    """Lets clients go that do not wait for their answer (they are killed, or out of patience)."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(answer: Answering) -> Iterator[Server]:
    """A server that answers every chat request with what ``answer`` makes of it."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            with lock:
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                server.requests.append(body)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
            try:
                status, content, *headers = answer(body)
            except ConnectionError:
                self.close_connection = True
                return
            finally:
                with lock:
                    server.at_once -= 1
            payload = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            for name, value in (headers[0] if headers else {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = _Patient(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_port}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def pictures_of(request: dict[str, Any]) -> list[Image.Image]:
    """The pictures that a request shows."""
    parts = [part for part in request["messages"][0]["content"] if part["type"] == "image_url"]
    urls = [part["image_url"]["url"] for part in parts]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB") for url in urls]


def text_of(request: dict[str, Any]) -> str:
    """What the user turn of a request says."""
    content = request["messages"][0]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
