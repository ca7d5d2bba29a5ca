"""A model behind an OpenAI-compatible endpoint as a judge."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, final

from openai import AsyncOpenAI

from klqlit.functional.checks import check_not_negative, check_positive
from klqlit.judges.background import in_background
from klqlit.judges.base import Estimate, Judge, JudgeStopped, Judgment, Question
from klqlit.judges.connection import Connection, RequestFailed, Unreachable
from klqlit.judges.replies import judgment_of
from klqlit.judges.templates import Template
from klqlit.redaction import redacted

CHARACTERS_PER_TOKEN = 4
"""In English, about; the judge's own tokenizer is not here."""

PROBE_RETRIES = 2

_log = logging.getLogger(__name__)

Emit = Callable[[tuple[int, Judgment]], None]


@final
class EndpointJudge(Judge):
    """Asks a model behind an OpenAI-compatible endpoint: OpenAI's own, vLLM, SGLang, Ollama, ``transformers serve``.

    Requests that fail for a reason that may pass (no connection, time-outs, status 429 and 5xx) are repeated by the
    client, with growing pauses or after the pause that the server asks for. The first request is sent alone, so that
    an endpoint that does not answer is known after seconds.

    Args:
        model: the model's name at the endpoint.
        base_url: ends in ``/v1`` for most servers.
        template: "summary", "helpful" or "harmless", or the path of an edited copy.
        api_key_variable: the environment variable that holds the key; None for ``OPENAI_API_KEY`` at OpenAI's own
            address and for no key at any other, so that a key is never sent to where it does not belong.
        concurrency: requests under way at once.
        max_retries: of one request.
        timeout: seconds for which the server may be silent, in each attempt. A request with its retries is given up
            at the latest after ``(1 + max_retries) * timeout + max_retries * 60`` seconds, 60 for the longest pause.
        max_failures: requests that may fail, after their retries, before the judge stops.
        max_tokens: longest answer, thoughts of a reasoning model included. A longer one is cut, and unreadable.
        temperature: of sampling; None to leave it out, as some reasoning models ask.
        seed: of sampling, where the server takes one.
        input_price: of a million tokens to read; for the estimate.
        output_price: of a million tokens to write.
        extra_body: further fields of the request, as the server documents them. They stand in every result.

    Raises:
        ValueError: an argument is out of range, the template cannot be read, the key is not in the environment, or
            `extra_body` holds one.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str = "https://api.openai.com/v1",
        template: str = "summary",
        api_key_variable: str | None = None,
        concurrency: int = 32,
        max_retries: int = 5,
        timeout: float = 60.0,
        max_failures: int = 20,
        max_tokens: int = 1024,
        temperature: float | None = 0.0,
        seed: int | None = None,
        input_price: float | None = None,
        output_price: float | None = None,
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        check_positive("concurrency", concurrency, "choose 1 for one request at a time")
        check_positive("timeout", timeout, "choose seconds, such as 60")
        check_positive("max_failures", max_failures, "choose 1 to stop at the first")
        check_positive("max_tokens", max_tokens, "choose enough for an answer, such as 1024")
        check_not_negative("max_retries", max_retries, "choose 0 for none")
        check_not_negative(
            "temperature", temperature or 0.0, "choose 0 for the likeliest answer, or null to ask for none"
        )
        check_not_negative("input_price", input_price or 0.0, "give the price of a million tokens")
        check_not_negative("output_price", output_price or 0.0, "give the price of a million tokens")
        if (input_price is None) != (output_price is None):
            raise ValueError(
                f"input_price={input_price} and output_price={output_price}: give both for an estimate of the cost"
            )
        if redacted(extra_body) != extra_body:
            raise ValueError(
                "extra_body holds what looks like a key or a password, and it stands in every result: give a key by "
                "api_key_variable, the name of an environment variable that holds it"
            )
        self.connection = Connection(
            model, base_url=base_url, api_key_variable=api_key_variable, max_retries=max_retries, timeout=timeout
        )
        self.template = Template(template)
        self.concurrency = concurrency
        self.max_retries = max_retries
        self.max_failures = max_failures
        self.max_tokens = max_tokens
        self.prices = None if input_price is None or output_price is None else (input_price, output_price)
        self.sampling = {"temperature": temperature, "seed": seed}
        self.extra_body = extra_body or {}

    @property
    def identity(self) -> dict[str, Any]:
        """What may change a verdict. The address too: two servers may give one name to different weights."""
        return {
            "class": "EndpointJudge",
            "model": self.connection.model,
            "base_url": self.connection.base_url,
            "template": self.template.name,
            "template_hash": self.template.hash,
            "max_tokens": self.max_tokens,
            **self.sampling,
            "extra_body": self.extra_body,
        }

    @property
    def sees_order(self) -> bool:
        return True

    def judge(
        self, questions: Sequence[Question], stopping: threading.Event | None = None
    ) -> Iterator[tuple[int, Judgment]]:
        return in_background(partial(self._ask_all, questions, stopping or threading.Event()))

    def estimate(self, questions: Sequence[Question]) -> Estimate:
        """Tokens to read at 4 characters each, since the judge's tokenizer is not here; to write, `max_tokens` each."""
        read = sum(-(-len(self.template.fill(question)) // CHARACTERS_PER_TOKEN) for question in questions)
        written = len(questions) * self.max_tokens
        cost = None if self.prices is None else (read * self.prices[0] + written * self.prices[1]) / 1e6
        return Estimate(requests=len(questions), input_tokens=read, output_tokens=written, cost=cost)

    async def _ask_all(self, questions: Sequence[Question], stopping: threading.Event, emit: Emit) -> None:
        pending = iter(range(len(questions)))
        failures: list[str] = []

        async def work() -> None:
            while not stopping.is_set() and (index := next(pending, None)) is not None:
                try:
                    emit((index, await self._ask(client, questions[index])))
                except RequestFailed as error:
                    failures.append(str(error))
                    self._check_budget(failures)

        async with self.connection.client() as client:
            if await self._probe(client, questions, stopping, emit):
                next(pending)
            await _together([work() for _ in range(self.concurrency)])

    async def _probe(
        self, client: AsyncOpenAI, questions: Sequence[Question], stopping: threading.Event, emit: Emit
    ) -> bool:
        """Ask the first question alone; False where it is to be asked again, with all its retries.

        Raises:
            JudgeStopped: nothing answers.
        """
        if stopping.is_set() or not questions:
            return False
        patience = min(self.max_retries, PROBE_RETRIES)
        try:
            emit((0, await self._ask(client.with_options(max_retries=patience), questions[0])))
        except Unreachable as error:
            raise JudgeStopped(
                f"{self.connection} does not answer ({error}; tried {patience + 1} times): start the server, or check "
                "base_url; give a slow one a higher timeout"
            ) from None
        except RequestFailed:
            return False
        return True

    async def _ask(self, client: AsyncOpenAI, question: Question) -> Judgment:
        # OpenAI's own reasoning models refuse the older name, and other servers do not all know the newer one.
        limit = "max_completion_tokens" if self.connection.at_openai else "max_tokens"
        request = {
            "model": self.connection.model,
            "messages": [{"role": "user", "content": self.template.fill(question)}],
            limit: self.max_tokens,
            **{name: value for name, value in self.sampling.items() if value is not None},
            **self.extra_body,
        }
        return judgment_of(await self.connection.send(client, request), self.max_tokens)

    def _check_budget(self, failures: Sequence[str]) -> None:
        _log.warning("a question was left out: %s", failures[-1])
        if len(failures) >= self.max_failures:
            raise JudgeStopped(
                f"{self.connection} failed {len(failures)} questions (max_failures={self.max_failures}), the last one "
                f"for this reason: {failures[-1]}. What was judged before is kept; run again to ask the rest"
            )


async def _together(coroutines: Sequence[Any]) -> None:
    """Run all; the first error ends the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
