"""Media from the web, only from hosts that are named, and within bounds of size and time."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from urllib.parse import urlsplit


def is_url(source: object) -> bool:
    """Whether a media source is an address.

    Example:
        >>> is_url("https://a.org/1.png"), is_url("photos/1.png")
        (True, False)
    """
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


class UrlError(ValueError):
    """An address that may not be, or cannot be, read; the message names it."""


@dataclass(frozen=True)
class Urls:
    """Which addresses may be read.

    Attributes:
        hosts: Names of the hosts that may be asked, redirections included.
        seconds: The longest a file may take, from the first byte asked to the last one read.
    """

    hosts: list[str]
    seconds: float = 30.0

    def read(self, url: str, max_bytes: int) -> bytes:
        """The content of an address.

        Raises:
            UrlError: The host is not named, or the file cannot be had within the bounds.
        """
        self.check(url)
        end = time.monotonic() + self.seconds
        opener = urllib.request.build_opener(_Redirects(self))
        try:
            with opener.open(url, timeout=self.seconds) as response:
                return self._read(response, url, max_bytes, end)
        except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            raise UrlError(f"{url}: cannot be read ({' '.join(str(error).split())})") from error

    def check(self, url: str) -> None:
        """Refuse what is not on a named host.

        Raises:
            UrlError: It is not.
        """
        host = urlsplit(url).hostname
        if not is_url(url) or host not in self.hosts:
            raise UrlError(f"{url}: host {host!r} is not among those of data.urls.hosts")

    def _read(self, response: HTTPResponse, url: str, max_bytes: int, end: float) -> bytes:
        content = bytearray()
        while chunk := response.read1(1 << 16):
            content += chunk
            if len(content) > max_bytes:
                raise UrlError(f"{url}: more than max_bytes={max_bytes}")
            if time.monotonic() > end:
                raise UrlError(f"{url}: took longer than seconds={self.seconds:g}")
        expected = response.length
        if expected:
            raise UrlError(f"{url}: ended {expected} bytes early")
        return bytes(content)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections to named hosts only."""

    def __init__(self, urls: Urls) -> None:
        self.urls = urls

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # noqa: ANN001, ANN201 - urllib's signature
        try:
            self.urls.check(newurl)
        except UrlError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)
