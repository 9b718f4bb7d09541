"""Any OpenAI-compatible endpoint: many requests at once, repeated when they fail; one line when that fails.

The key is read from the environment (``OPENAI_API_KEY``) by the client, and is neither logged nor stored.
"""

from __future__ import annotations

import base64
import io
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal
from urllib.parse import urlsplit

import openai
from PIL import Image

from lit_msrl.prompts import MEDIA_MARK
from lit_msrl.types import Media


@dataclass(frozen=True)
class Reply:
    """What the model wrote.

    Attributes:
        text: All of it.
        tokens: What it took; ``None`` where the server does not say.
        scored: Its tokens and their log-probabilities; none where the server does not say.
    """

    text: str
    tokens: int | None
    scored: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible server.

    Attributes:
        url: Base URL of the API, such as ``http://localhost:8000/v1``.
        model: The model's name there.
        concurrency: Requests at the same time.
        retries: How often a request is repeated, with growing pauses, when what failed may pass.
        timeout: Seconds for one request.

    Raises:
        ValueError: The URL is none, or holds a password.
    """

    url: str
    model: str
    concurrency: int = 8
    retries: int = 4
    timeout: float = 300.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"endpoint {self.url!r} is no URL such as http://localhost:8000/v1")
        if parts.password or parts.query:
            raise ValueError("an endpoint's URL must not hold a key: put it into OPENAI_API_KEY")
        if not self.model:
            raise ValueError("an endpoint needs the model's name: give --model")
        if self.concurrency < 1:
            raise ValueError(f"concurrency is {self.concurrency}; it must be at least 1")

    @cached_property
    def _client(self) -> openai.OpenAI:
        return openai.OpenAI(**self.connection())

    def connection(self) -> dict[str, Any]:
        """Arguments of the client; between tries it waits ever longer, or as it is told (Retry-After)."""
        key = os.environ.get("OPENAI_API_KEY") or "none"  # servers on localhost want none
        return {
            "base_url": self.url,
            "api_key": key,
            "max_retries": self.retries,
            "timeout": self.timeout,
        }

    def complete(
        self, messages: Sequence[dict[str, Any]], *, max_tokens: int, temperature: float | None
    ) -> Iterator[tuple[int, Reply]]:
        """Complete chats of one message each; ``(index, reply)``, each as soon as it is there.

        Args:
            messages: The user turns.
            max_tokens: Longest reply.
            temperature: Of sampling; ``None`` leaves it to the server (some models accept no other).

        Raises:
            ValueError: The endpoint cannot be reached or refuses; what was not sent yet is not sent any more.
        """
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            asked = {
                pool.submit(self._complete, content, max_tokens, temperature): index
                for index, content in enumerate(messages)
            }
            for future in as_completed(asked):
                yield asked[future], future.result()
        except openai.OpenAIError as error:
            raise ValueError(f"endpoint {self.url}: {reason(error)}") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _complete(self, content: dict[str, Any], max_tokens: int, temperature: float | None) -> Reply:
        asks_scores = not self._scores_refused.is_set()
        try:
            answer = self._client.chat.completions.create(
                model=self.model,
                messages=[content],  # type: ignore[list-item]
                max_completion_tokens=max_tokens,
                temperature=openai.omit if temperature is None else temperature,
                logprobs=True if asks_scores else openai.omit,
            )
        except openai.BadRequestError as error:
            if asks_scores and "logprobs" in f"{error.param} {error.message}":
                self._scores_refused.set()  # some models have none; from now on they are not asked for
                return self._complete(content, max_tokens, temperature)
            if error.code != "content_filter":
                raise
            return Reply("", None)  # the server will not answer this one; it counts as unread
        tokens = answer.usage.completion_tokens if answer.usage else None
        if not answer.choices:
            return Reply("", tokens)
        choice = answer.choices[0]
        listed = (choice.logprobs and choice.logprobs.content) or ()
        return Reply(choice.message.content or "", tokens, tuple((t.token, t.logprob) for t in listed))

    @cached_property
    def _scores_refused(self) -> threading.Event:
        return threading.Event()


def message(text: str, media: Sequence[Media], encoding: Literal["PNG", "JPEG"] = "PNG") -> dict[str, Any]:
    """A user turn of the chat API; every media mark becomes its pictures (a clip is a row of them)."""
    content: list[dict[str, Any]] = []
    left = iter(media)
    for i, piece in enumerate(text.split(MEDIA_MARK)):
        if i:
            urls = [_data_url(frame, encoding) for frame in next(left).frames]
            content += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        if piece.strip():
            content.append({"type": "text", "text": piece})
    return {"role": "user", "content": content if media else text}


def _data_url(frame: Image.Image, encoding: Literal["PNG", "JPEG"]) -> str:
    buffer = io.BytesIO()
    frame.convert("RGB").save(buffer, encoding, **({"quality": 95} if encoding == "JPEG" else {}))
    return f"data:image/{encoding.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def reason(error: openai.OpenAIError) -> str:
    """Why, without what was asked (its body is long), and without the key, which some servers repeat."""
    said, key = _said(error), os.environ.get("OPENAI_API_KEY")
    return said.replace(key, "***") if key else said


def _said(error: openai.OpenAIError) -> str:
    if isinstance(error, openai.APITimeoutError):
        return "no answer in time; is it overloaded?"
    if isinstance(error, openai.APIConnectionError):
        return f"cannot be reached ({error.__cause__ or error}); is it running?"
    if isinstance(error, openai.APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        return f"refuses with status {error.status_code}: {str(body.get('message') or error.message)[:300]}"
    return type(error).__name__
