"""The verdict in a judging model's own words. What is not clear is unreadable: nothing is guessed."""

import json
import re
from typing import Any

from klqlit.judges.base import Verdict

_VERDICTS: dict[str, Verdict] = {"a": "first", "b": "second", "tie": "tie"}
_CHOICE = re.compile(r"(?:(?:response|summary|answer|assistant|option)\s+)?(a|b|(?:a\s+)?tie)", re.IGNORECASE)
# The word opens a line or a sentence, so that prose about verdicts states none.
_STATED = re.compile(
    r"(?:^|(?<=[.!?])\s+)(?:(?:so|my|the|final|overall)\s+)*verdict(?:\s*[:：=]|\s+[–—-]|\s+is\b:?|\s*$)(?P<choice>.*)$",
    re.IGNORECASE,
)
_BRACKETED = re.compile(r"(?P<choice>\[\[[^\[\]]*\]\])$")
_PAIRS = ("[]", "()", "{}", '""', "''", "“”")
# Emphasis, code marks, headings and bullets of Markdown: none of them changes what is said.
_MARKS = re.compile(r"[*_`#]|^\s*[-+•]\s+")
_OPEN_THOUGHT = re.compile(r"^\s*<think>", re.MULTILINE)


def read_verdict(answer: str) -> Verdict:
    """The verdict that an answer states in words such as ``Verdict: A``, ``Verdict: B`` or ``Verdict: TIE``.

    Read alike are ``**Final verdict:** Response A.``, ``Verdict: [[B]]``, ``[[B]]`` on a line of its own, ``Verdict``
    above ``TIE``, and an object ``{"verdict": "A"}`` at the end. What stands before ``</think>`` is left out, and an
    answer that never leaves ``<think>`` has no verdict. Lines after ``>`` and sentences in quotation marks repeat
    another's words and state nothing.

    A statement in the last line is the verdict: those before it may be quotations from the responses. Where more text
    follows the statements, they must agree. Other wording, such as "A is better" or "Verdict: A or B", is unreadable.
    """
    text = answer.rpartition("</think>")[2]
    if _OPEN_THOUGHT.search(text):
        return "unreadable"
    lines = [line for line in map(_plain, text.splitlines()) if line and not line.startswith(">")]
    if not lines:
        return "unreadable"
    choices = _object_at_end(text) or _last_line(lines) or _all_lines(lines)
    verdicts = {_verdict(choice) for choice in choices}
    return verdicts.pop() if len(verdicts) == 1 else "unreadable"


def _plain(line: str) -> str:
    return _MARKS.sub("", line).strip()


def _last_line(lines: list[str]) -> list[str]:
    """The choice that the last line states: with its label in the same line or above it."""
    return _stated(lines[-1]) or (lines[-1:] if len(lines) > 1 and _is_label(lines[-2]) else [])


def _all_lines(lines: list[str]) -> list[str]:
    """Every choice stated, a line at a time; a label takes the line below it."""
    return [
        choice
        for line, below in zip(lines, [*lines[1:], ""], strict=True)
        for choice in ([below] if _is_label(line) else _stated(line))
    ]


def _stated(line: str) -> list[str]:
    """What a line states as its verdict, whatever the words; nothing where it states none."""
    found = _STATED.search(line) or _BRACKETED.match(line)
    return [found["choice"]] if found else []


def _is_label(line: str) -> bool:
    return [choice.strip() for choice in _stated(line)] == [""]


def _verdict(choice: str) -> Verdict:
    """The verdict that a stated choice means."""
    bare = _trimmed(choice)
    while bare[:1] + bare[-1:] in _PAIRS:
        bare = _trimmed(bare[1:-1])
    found = _CHOICE.fullmatch(bare)
    return _VERDICTS[found[1].lower().split()[-1]] if found else "unreadable"


def _trimmed(choice: str) -> str:
    return choice.strip().rstrip(".!").rstrip()


def _object_at_end(text: str) -> list[str]:
    """The values of "verdict" in a JSON object that begins a line and ends the text, be it fenced as code or not."""
    body = text.rstrip().removesuffix("```").rstrip()
    if not body.endswith("}"):
        return []
    for start in re.finditer(r"^\s*{", body, re.MULTILINE):
        try:
            pairs: list[tuple[str, Any]] = json.loads(body[start.start() :], object_pairs_hook=list)
        except (ValueError, RecursionError):
            continue
        return [value if isinstance(value, str) else "" for key, value in pairs if key.lower() == "verdict"]
    return []
