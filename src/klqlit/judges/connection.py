"""The way to a model behind an OpenAI-compatible endpoint, and what its failures mean."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final
from urllib.parse import urlsplit

from openai import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncOpenAI,
    AuthenticationError,
    NotFoundError,
    Omit,
    OpenAIError,
    PermissionDeniedError,
)

from klqlit.judges.base import JudgeStopped
from klqlit.judges.replies import Reply, read_reply
from klqlit.redaction import hide

OPENAI_HOST = "api.openai.com"

LONGEST_PAUSE = 60.0
"""Seconds before a retry, where the server asks for them; the client grants no more."""


class RequestFailed(RuntimeError):
    """A request failed after its retries; others may succeed."""


@final
class Unreachable(RequestFailed):
    """Nothing answered."""


@final
class Connection:
    """A model's address, and the key to it, which is read from the environment and never kept.

    Args:
        model: its name there.
        base_url: ends in ``/v1`` for most servers.
        api_key_variable: the environment variable that holds the key; None for ``OPENAI_API_KEY`` at OpenAI's own
            address and for no key at any other.
        max_retries: of a request that failed for a reason that may pass.
        timeout: seconds for which a server may be silent, in each attempt. A request with its `max_retries` retries is
            given up at the latest after ``(1 + max_retries) * timeout + max_retries * 60`` seconds, also where bytes
            keep coming: 60 is the longest pause before a retry.

    Raises:
        ValueError: `base_url` is no address or holds a secret, or the variable is not set.
    """

    def __init__(
        self, model: str, *, base_url: str, api_key_variable: str | None, max_retries: int, timeout: float
    ) -> None:
        self.model = model
        self.base_url = _checked_url(base_url)
        self.at_openai = urlsplit(base_url).hostname == OPENAI_HOST
        self._variable = api_key_variable or ("OPENAI_API_KEY" if self.at_openai else None)
        self._max_retries = max_retries
        self._timeout = timeout
        self._key()

    def client(self) -> AsyncOpenAI:
        """A client that repeats requests with growing pauses, or after the pause that the server asks for."""
        key = self._key() or "none"
        return AsyncOpenAI(
            api_key=key,
            base_url=self.base_url,
            max_retries=self._max_retries,
            timeout=self._timeout,
            default_headers=None if self.at_openai else _only_this_key(key),
        )

    async def send(self, client: AsyncOpenAI, request: Mapping[str, Any]) -> Reply:
        """The reply to a request, which is the body of a chat completion's.

        Raises:
            JudgeStopped: no request can succeed.
            RequestFailed: this one did not.
        """
        limit = (1 + client.max_retries) * self._timeout + client.max_retries * LONGEST_PAUSE
        # Errors are not chained: what they quote from headers and bodies may hold the key.
        try:
            # Not `client.chat.completions.create`: its check of a request takes longer than sending it.
            answer = client.post("/chat/completions", cast_to=str, body=request)
            # The client's own timeout starts anew with every byte.
            reply = read_reply(await asyncio.wait_for(answer, limit))
            return replace(reply, text=self._without_key(reply.text))
        except (AuthenticationError, PermissionDeniedError, NotFoundError) as error:
            raise JudgeStopped(f"{self._status(error)}. {self._way_out(error)}") from None
        except (APITimeoutError, asyncio.TimeoutError):
            raise Unreachable(f"no whole answer within timeout={self._timeout:g} s") from None
        except APIConnectionError as error:
            raise Unreachable(f"no connection: {self._line(error.__cause__ or error)}") from None
        except APIStatusError as error:
            raise RequestFailed(self._status(error)) from None
        except (OpenAIError, ValueError) as error:
            raise RequestFailed(self._line(error)) from None

    def __str__(self) -> str:
        return f"the judge {self.model!r} at {self.base_url}"

    def _key(self) -> str | None:
        if self._variable is None:
            return None
        key = os.environ.get(self._variable, "").strip()
        if not key:
            raise ValueError(
                f"the environment variable {self._variable} is not set, and {self.base_url} wants a key: set it, or "
                "give the base_url of a server that wants none"
            )
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"the environment variable {self._variable} holds characters that no key has: set it anew")
        return key

    def _status(self, error: APIStatusError) -> str:
        return f"{self} answered with status {error.status_code}: {self._line(error.message)}"

    def _way_out(self, error: APIStatusError) -> str:
        if isinstance(error, NotFoundError):
            return "Check the model's name and base_url, which ends in /v1 for most servers"
        if self._variable is None:
            return "If it wants a key, give api_key_variable, the name of an environment variable that holds it"
        return f"Check that the key in the environment variable {self._variable} is right and may use this model"

    def _line(self, value: object) -> str:
        """A server's words in one line, without the key."""
        return self._without_key(" ".join(str(value).split()))[:300]

    def _without_key(self, text: str) -> str:
        key = self._key()
        return text if key is None else text.replace(key, "[key]")


def _only_this_key(key: str) -> dict[str, Any]:
    """Headers that keep what the environment says for OpenAI from other servers: the client adds it to all requests."""
    lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
    custom = [line.partition(":")[0].strip() for line in lines if ":" in line]
    names = [*custom, "OpenAI-Organization", "OpenAI-Project", "Authorization"]
    return {name: f"Bearer {key}" if name.lower() == "authorization" else Omit() for name in names}


def _checked_url(base_url: str) -> str:
    try:
        parts = urlsplit(base_url)
    except ValueError:
        parts = urlsplit("")
    if "@" not in base_url and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError(f"base_url={hide(base_url)!r} is no address: give one such as 'http://127.0.0.1:8000/v1'")
    if "@" in base_url or parts.query:
        where = f" for {parts.hostname}" if parts.hostname else ""
        raise ValueError(
            f"base_url{where} holds a user, a password or a query: leave them out, and give a key by the environment "
            "variable that api_key_variable names"
        )
    return base_url.rstrip("/")
