"""Who describes pictures and clips: a model behind an endpoint, or a vision-language model in this process.

A caption is of a medium alone: the question asked about it is not shown, nor what was to be drawn. So one
caption serves every preference in which the medium occurs, and holds nothing that only the answer would tell.
Candidates of generation tasks, which are media that a model made, are described by the same words; these ask
for visible flaws, too, as stage 2 judges such candidates by nothing but their captions.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import jinja2
import openai
import torch
from openai.types.chat import ChatCompletion

from lit_msrl.endpoint import Endpoint, message, reason
from lit_msrl.engines import RolloutEngine, Sampling
from lit_msrl.policy import GenerativeRMPolicy
from lit_msrl.prompts import MEDIA_MARK, JudgingPrompt, Style
from lit_msrl.types import Media, PreferenceExample

_TEMPLATES = {"full": "caption.jinja", "compact": "caption_compact.jinja"}
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)|[。！？]")
_TAG = re.compile(r"</?(?:type|caption|think|answer)>")  # a judge that captions may write them
_FATAL = (openai.AuthenticationError, openai.NotFoundError)
_NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached")


@dataclass(frozen=True)
class Wording:
    """What a captioner is asked.

    Attributes:
        style: ``full``, or ``compact`` for tiny models.
        max_words: Longest caption in words (what white space divides): asked for, and then held to by leaving
            out sentences at the end.
    """

    style: Style = "full"
    max_words: int | None = None

    def ask(self, example: PreferenceExample, media: Media) -> JudgingPrompt:
        """The request for a caption of one medium of an example."""
        return JudgingPrompt(example, False, self.text(media.kind == "video"), (media,), (), None)

    def text(self, video: bool) -> str:
        """The user turn."""
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("lit_msrl"),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        template = environment.get_template(_TEMPLATES[self.style])
        return template.render(mark=MEDIA_MARK, video=video, max_words=self.max_words).strip()

    @property
    def version(self) -> str:
        """A name that changes with every word that is asked, and with the cap."""
        asked = self.text(False) + self.text(True) + str(self.max_words)
        return f"{self.style}-{hashlib.blake2b(asked.encode(), digest_size=4).hexdigest()}"


@dataclass(frozen=True)
class Outcome:
    """What came of a request.

    Attributes:
        text: The caption; empty if there is none.
        problem: Why there is none.
        input_tokens: What was read, in tokens, where that is known.
        output_tokens: What was written, in tokens, where that is known.
        cut: Sentences at its end were left out.
    """

    text: str = ""
    problem: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cut: bool = False


class Captioner(ABC):
    """Describes media.

    Attributes:
        at_once: How many times ``write`` may be under way.
        together: How many requests it takes best.
    """

    at_once: int
    together: int

    @abstractmethod
    async def write(self, prompts: Sequence[JudgingPrompt]) -> list[Outcome]:
        """An outcome for each request.

        Raises:
            ValueError: No request can succeed.
        """

    async def close(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Let go of what is held."""


class EndpointCaptioner(Captioner):
    """A model behind an endpoint. Pictures are sent as JPEG.

    Args:
        endpoint: Where it is.
        max_tokens: Longest reply, reasoning included.
        max_words: Longest caption.
        temperature: Of sampling; ``None`` leaves it to the server (some models accept no other).
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        max_tokens: int,
        max_words: int | None = None,
        temperature: float | None = None,
    ) -> None:
        self.endpoint, self.max_tokens, self.max_words = endpoint, max_tokens, max_words
        self.temperature = temperature
        self.at_once, self.together = endpoint.concurrency, 1
        self._reached = False

    async def write(self, prompts: Sequence[JudgingPrompt]) -> list[Outcome]:
        """See ``Captioner``."""
        return [await self._write(prompt) for prompt in prompts]

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    @cached_property
    def _client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(**self.endpoint.connection())

    async def _write(self, prompt: JudgingPrompt) -> Outcome:
        asked = await asyncio.to_thread(message, prompt.text, prompt.media, "JPEG")
        try:
            answer = await self._client.chat.completions.create(
                model=self.endpoint.model,
                messages=[asked],  # type: ignore[list-item]
                max_completion_tokens=self.max_tokens,
                temperature=openai.omit if self.temperature is None else self.temperature,
            )
        except openai.APIError as error:
            return self._failed(error)
        self._reached = True
        return self._read(answer)

    def _failed(self, error: openai.APIError) -> Outcome:
        """What is wrong with one request; raises if the next would fare no better."""
        unreached = isinstance(error, openai.APIConnectionError) and not isinstance(
            error, openai.APITimeoutError
        )
        self._reached |= not unreached
        if (unreached and not self._reached) or isinstance(error, _FATAL) or error.code in _NO_MONEY:
            raise ValueError(f"endpoint {self.endpoint.url}: {reason(error)}") from error
        return Outcome(problem=reason(error))

    def _read(self, answer: ChatCompletion) -> Outcome:
        read = answer.usage.prompt_tokens if answer.usage else None
        written = answer.usage.completion_tokens if answer.usage else None
        if not answer.choices:
            return Outcome("", "the answer holds no text", read, written)
        choice = answer.choices[0]
        if choice.message.refusal or choice.finish_reason == "content_filter":
            return Outcome("", f"refused ({choice.message.refusal or 'content filter'})", read, written)
        ended = choice.finish_reason != "length"
        return outcome(choice.message.content or "", ended, self.max_words, self.max_tokens, (read, written))


class PolicyCaptioner(Captioner):
    """A model in this process.

    Args:
        policy: The model.
        engine: What samples.
        batch_size: Media at a time.
        max_tokens: Longest caption in tokens.
        max_words: Longest caption in words.
        temperature: Of sampling; 0 is greedy.
        seed: Seed of sampling.
    """

    def __init__(
        self,
        policy: GenerativeRMPolicy,
        engine: RolloutEngine,
        *,
        batch_size: int,
        max_tokens: int,
        max_words: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.policy, self.engine, self.seed, self.max_words = policy, engine, seed, max_words
        self.sampling = Sampling(1, max_tokens, temperature)
        self.at_once, self.together = 1, batch_size

    async def write(self, prompts: Sequence[JudgingPrompt]) -> list[Outcome]:
        """See ``Captioner``."""
        return await asyncio.to_thread(self._write, prompts)

    @torch.no_grad()
    def _write(self, prompts: Sequence[JudgingPrompt]) -> list[Outcome]:
        try:
            batch = self.policy.encode(prompts)
        except ValueError as error:  # too long; the others of the batch are not
            if len(prompts) == 1:
                return [Outcome(problem=str(error))]
            return [found for prompt in prompts for found in self._write([prompt])]
        drawn = self.engine.generate(self.policy, prompts, batch, sampling=self.sampling, seed=self.seed)
        texts = self.policy.decode(drawn.ids, drawn.mask)
        read, longest = batch.attention_mask.sum(1).tolist(), self.sampling.max_length
        found = []
        for row, text in enumerate(texts):
            ids = drawn.ids[row][drawn.mask[row].bool()]
            ended = bool(ids[-1] == self.policy.tokenizer.eos_token_id)
            found.append(outcome(text, ended, self.max_words, longest, (read[row], len(ids))))
        return found


def outcome(
    text: str, ended: bool, max_words: int | None, max_tokens: int, tokens: tuple[int | None, int | None]
) -> Outcome:
    """What a reply comes to: whole sentences, as many as the caps allow.

    Args:
        text: The reply.
        ended: The model came to an end by itself.
        max_words: Longest caption in words.
        max_tokens: What ended it otherwise, for messages.
        tokens: Read and written.
    """
    text = _TAG.sub(" ", text).strip()
    caption = shortened(text, max_words, ended=ended)
    if caption:
        return Outcome(caption, "", *tokens, cut=caption != text)
    if ended:
        return Outcome("", "the answer holds no text", *tokens)
    return Outcome("", f"cut off at max_tokens={max_tokens} before a sentence was whole", *tokens)


def shortened(text: str, max_words: int | None, *, ended: bool = True) -> str:
    """The whole sentences at the start of a text that fit.

    A first sentence that is longer than ``max_words`` is cut; one that its writer did not end is left out.

    Example:
        >>> shortened("A dog runs. It is wet. Behind it", None, ended=False)
        'A dog runs. It is wet.'
        >>> shortened("A dog runs. It is wet.", 4), shortened("A dog runs.", 2)
        ('A dog runs.', 'A dog')
    """
    text = text.strip()
    words = list(re.finditer(r"\S+", text))
    fits = max_words is None or len(words) <= max_words
    if fits and ended:
        return text
    within = text if fits else text[: words[max_words - 1].end()]  # type: ignore[operator]
    ends = [found.end() for found in _SENTENCE_END.finditer(within)]
    if ends:
        return within[: ends[-1]]
    return "" if fits else within
