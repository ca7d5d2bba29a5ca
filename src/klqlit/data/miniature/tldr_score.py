r"""The gold reward of `MiniTLDR` as a function of text.

    score = content + faith + brevity + form + language

With share(.) the largest share of a fact's key words that a single sentence holds:

- content, in [0, 3.2]: ``0.4 share(person) + 0.8 share(deed) + 0.8 share(result) + 0.6 share(question)``, and 0.6 more
  for a summary that has all four;
- faith, in [-1.5, 0]: ``-0.5 min(3, persons, deeds, results and questions of other posts)``;
- brevity, in (-1.8, 0]: ``exp(-(gap / 8)^2) - 1 - 0.4 min(2, asides)``, gap the number of words outside 8 to 20; asides
  are what had nothing to do with the matter;
- form, in [-2.7, 0]: ``-0.4 min(2, idle sentences) - 1.5 (share of repeated three-word runs) - 0.4 [not closed as a
  sentence]``, where an idle sentence holds no key word of the post;
- language, in [-4, 0]: ``-4 (share of neighbouring words that no phrase of the task brings together)``, so that heaped
  up key words do not pay.

White space at either end of a text does not matter.
"""

from klqlit.data.miniature.text import (
    Phrase,
    coverage,
    is_closed,
    length_penalty,
    pairs,
    repetition,
    sentences,
    stated,
    strangeness,
    words,
)
from klqlit.data.miniature.tldr_phrases import SLOTS, all_asides, all_items, all_sentences

_ITEMS = {slot: {item.text: item for item in all_items(slot)} for slot in SLOTS}
_ASIDES = all_asides()
_WEIGHTS = {"person": 0.4, "deed": 0.8, "result": 0.8, "ask": 0.6}
_KNOWN_PAIRS = frozenset(pair for sentence in all_sentences() for pair in pairs(sentence))


def score_summary(person: str, deed: str, result: str, ask: str, text: str) -> float:
    """Gold score of a summary; 3.2 at best.

    Args:
        person: who is spoken of, the row's column of that name; likewise ``deed``, ``result`` and ``ask``.
        deed: what they did.
        result: what came of it.
        ask: what the post asks.
        text: the summary, any text.
    """
    return sum(grade_summary(person, deed, result, ask, text).values())


def grade_summary(person: str, deed: str, result: str, ask: str, text: str) -> dict[str, float]:
    """The components of `score_summary` by name.

    Raises:
        ValueError: a fact is none of this task's.
    """
    facts = {slot: _item(slot, value) for slot, value in zip(SLOTS, (person, deed, result, ask), strict=True)}
    spoken = [set(words(sentence)) for sentence in sentences(text)]
    told = {slot: coverage(fact, spoken) for slot, fact in facts.items()}
    foreign = sum(
        stated((item for item in _ITEMS[slot].values() if item != fact), spoken) for slot, fact in facts.items()
    )
    return {
        "content": sum(_WEIGHTS[slot] * told[slot] for slot in SLOTS) + 0.6 * (min(told.values()) == 1.0),
        "faith": -0.5 * min(3, foreign),
        "brevity": _brevity(text, spoken),
        "form": _form(text, spoken, frozenset().union(*(fact.keys for fact in facts.values()))),
        "language": -4.0 * strangeness(text, _KNOWN_PAIRS),
    }


def _item(slot: str, value: str) -> Phrase:
    if value not in _ITEMS[slot]:
        raise ValueError(f"{slot}={value!r} is no column of MiniTLDR: score rows that MiniTLDR made")
    return _ITEMS[slot][value]


def _brevity(text: str, spoken: list[set[str]]) -> float:
    return length_penalty(len(words(text)), shortest=8, longest=20, width=8.0) - 0.4 * min(2, stated(_ASIDES, spoken))


def _form(text: str, spoken: list[set[str]], keys: frozenset[str]) -> float:
    idle = sum(not sentence & keys for sentence in spoken)
    closed = bool(spoken) and is_closed(text)
    return -0.4 * min(2, idle) - 1.5 * repetition(text) - 0.4 * (not closed)
