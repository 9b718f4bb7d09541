"""A real server on localhost, asked within bounds."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from data_modules.media import Decoder, MediaError
from data_modules.urls import UrlError, Urls
from lit_msrl.types import Media


def png() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 4)).save(content, "png")
    return content.getvalue()


class Server(BaseHTTPRequestHandler):
    """Serves a picture; sends elsewhere; dawdles; breaks off; goes on for ever."""

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        self.send_response(404 if self.path == "/missing" else 200)
        content = png()
        short = self.path == "/short"
        if self.path != "/endless":
            self.send_header("Content-Length", str(len(content) + short))
        self.end_headers()
        if self.path == "/slow":
            for byte in content[:12]:
                self.wfile.write(bytes([byte]))
                time.sleep(0.03)
        elif self.path == "/endless":
            for _ in range(1000):
                self.wfile.write(bytes(1000))
        else:
            self.wfile.write(content)

    def handle(self) -> None:
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = False  # so that closing waits for them
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


LOCAL = Urls(["127.0.0.1"])


def test_a_picture_from_a_named_host(address):
    (frame,) = Decoder(urls=LOCAL)(Media("image", f"{address}/a.png")).frames
    assert frame.size == (8, 4)
    assert Decoder(urls=LOCAL).sizes(Media("image", f"{address}/a.png")) == [(8, 4)]


def test_nothing_is_asked_unless_the_host_is_named(address):
    media = Media("image", f"{address}/a.png")
    with pytest.raises(MediaError, match="addresses are not read unless data.urls.hosts names the host"):
        Decoder()(media)
    with pytest.raises(MediaError, match="host '127.0.0.1' is not among those of data.urls.hosts"):
        Decoder(urls=Urls(["example.org"]))(media)


def test_redirections_are_followed_to_named_hosts_only(address):
    assert LOCAL.read(f"{address}/to//a.png", 10_000) == png()
    other = address.replace("127.0.0.1", "localhost")
    with pytest.raises(UrlError, match="host 'localhost' is not among"):
        LOCAL.read(f"{address}/to/{other}/a.png", 10_000)
    with pytest.raises(UrlError):
        LOCAL.read(f"{address}/to/file:///etc/passwd", 10_000)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1/a", "http://user@evil.org/a", "http:///a"]
)
def test_other_addresses_are_refused(url):
    with pytest.raises(UrlError, match="is not among"):
        LOCAL.read(url, 100)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/endless", "more than max_bytes=50000"),
        ("/missing", "cannot be read .HTTP Error 404"),
        ("/slow", r"took longer than seconds=0.2|cannot be read"),
        ("/short", "ended 1 bytes early|cannot be read"),
    ],
)
def test_bounds_and_failures_are_named(address, path, message):
    with pytest.raises(UrlError, match=message) as caught:
        Urls(["127.0.0.1"], seconds=0.2).read(f"{address}{path}", 50_000)
    assert f"{address}{path}" in str(caught.value)
    assert "\n" not in str(caught.value)
