"""What a chat endpoint sends back, and the judgment in it."""

import json
from dataclasses import dataclass
from typing import Any

from klqlit.judges.base import Judgment
from klqlit.judges.verdicts import read_verdict


@dataclass(kw_only=True, slots=True, frozen=True)
class Reply:
    """A chat completion.

    Attributes:
        text: what the model said; empty where it said nothing.
        cut: it reached the limit on its length.
    """

    text: str
    cut: bool


def read_reply(body: str) -> Reply:
    """The reply in the body of an answer.

    Raises:
        ValueError: the body is no chat completion.
    """
    try:
        choice = json.loads(body)["choices"][0]
        message = choice["message"]
        text = _text(message.get("content")) or _text(message.get("refusal"))
        cut = choice.get("finish_reason") == "length"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"the answer is no chat completion: {body[:200]!r}") from error
    # Half a surrogate pair is valid JSON, and cannot be written to any file.
    return Reply(text=text.encode(errors="replace").decode(), cut=cut)


def judgment_of(reply: Reply, max_tokens: int) -> Judgment:
    """The verdict of a reply. One that was cut is unreadable, since its last words need not be its verdict."""
    if reply.cut:
        note = f"[cut at max_tokens={max_tokens}: raise max_tokens]"
        return Judgment(verdict="unreadable", answer=f"{note} {reply.text}".rstrip())
    return Judgment(verdict=read_verdict(reply.text), answer=reply.text or "[empty]")


def _text(content: Any) -> str:
    """A message's content: a text, a list of parts some of which are texts, or nothing."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part["type"] == "text")
    if content is None or isinstance(content, str):
        return content or ""
    raise TypeError("content is no text")
