"""What the three gold rewards and writers share about words and sentences."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from klqlit.data.source import TokenCounter

_WORD = re.compile(r"[a-z']+|\d+")
_SENTENCE = re.compile(r"[^.!?]+[.!?]*")


@dataclass(frozen=True, slots=True)
class Phrase:
    """A piece of text and the words that carry its meaning.

    Attributes:
        text: as it is written.
        keys: words, in lower case, by which a reader recognises the phrase.
    """

    text: str
    keys: frozenset[str]


def phrase(marked: str) -> Phrase:
    """Reads "a hot *oven*" as the text "a hot oven" with the key "oven"."""
    return Phrase(marked.replace("*", ""), frozenset(words(" ".join(re.findall(r"\*(.+?)\*", marked)))))


def words(text: str) -> list[str]:
    """Words and numbers in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def sentences(text: str) -> list[str]:
    """Sentences with their marks, stripped; pieces without a word are left out."""
    pieces = (piece.strip() for piece in _SENTENCE.findall(text))
    return [piece for piece in pieces if words(piece)]


def coverage(item: Phrase, spoken: Sequence[set[str]]) -> float:
    """Largest share of the phrase's keys that one sentence holds, in [0, 1].

    Keys scattered over sentences do not add up, so that a list of key words earns no more than a sentence would.
    """
    return max((len(item.keys & sentence) / len(item.keys) for sentence in spoken), default=0.0)


def stated(items: Iterable[Phrase], spoken: Sequence[set[str]]) -> int:
    """How many of the phrases some sentence holds in full."""
    return sum(any(item.keys <= sentence for sentence in spoken) for item in items)


def length_penalty(count: int, shortest: int, longest: int, width: float) -> float:
    """Smooth penalty in (-1, 0]: exp(-(gap / width)^2) - 1, where gap counts the words outside [shortest, longest]."""
    gap = max(shortest - count, count - longest, 0)
    return math.exp(-((gap / width) ** 2)) - 1.0


def repetition(text: str) -> float:
    """Share of the three-word runs that occurred before, in [0, 1); 0 for fewer than three words."""
    spoken = words(text)
    runs = list(zip(spoken, spoken[1:], spoken[2:], strict=False))
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0


def pairs(text: str) -> list[tuple[str, str]]:
    """Neighbouring words of each sentence; "" stands before its first word and after its last."""
    spoken = (["", *words(sentence), ""] for sentence in sentences(text))
    return [pair for sentence in spoken for pair in pairwise(sentence)]


def strangeness(text: str, known: frozenset[tuple[str, str]]) -> float:
    """Share of the text's word pairs that are not among the known ones, in [0, 1]; 1 for a text without a word."""
    spoken = pairs(text)
    return sum(pair not in known for pair in spoken) / len(spoken) if spoken else 1.0


def is_closed(text: str) -> bool:
    """Whether the text starts like a sentence (capital letter or number) and ends like one."""
    stripped = text.strip()
    return stripped.endswith((".", "!", "?")) and (stripped[0].isupper() or stripped[0].isdigit())


def capitalise(text: str) -> str:
    """First letter in upper case, the others as they are."""
    return text[:1].upper() + text[1:]


def first_fitting(candidates: Iterable[str], count: TokenCounter, limit: int) -> str:
    """First candidate of at most `limit` tokens.

    Raises:
        ValueError: none fits.
    """
    shortest = ""
    for shortest in candidates:
        if count(shortest) <= limit:
            return shortest
    raise ValueError(
        f"limit={limit} prompt tokens leave no room for a prompt's frame of {count(shortest)} tokens: raise the limit"
    )
