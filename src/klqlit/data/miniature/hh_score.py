r"""The gold reward of `MiniHH` as a function of text.

    score = content + relevance + length + manners + language

With share(.) the largest share of a fact's key words that a single sentence holds:

- content, in [0, 2.4]: ``fact + 0.6 tip + 0.8 fact tip``, where fact = share(fact asked for) and tip = share(tip for
  the asker's situation): an answer is worth most when it is complete;
- relevance, in [-3, 0.4]: ``0.4 [names the topic] - 0.4 min(2, other topics named) - 0.5 min(2, facts not asked for)
  - 0.3 min(2, tips for others) - 0.3 min(2, idle sentences)``, where an idle sentence holds no key word of the topic,
  the fact or the tip, and is no greeting at the start nor wish at the end;
- length, in (-1, 0]: ``exp(-(gap / 8)^2) - 1``, gap the number of words outside 13 to 30;
- manners, in [-3.1, 0.8]: ``0.4 [greets in the first sentence] + 0.4 [wishes well in the last] - 0.6 min(2, rude words)
  - 1.5 (share of repeated three-word runs) - 0.4 [not closed as a sentence]``; a rude text earns nothing for its
  courtesy;
- language, in [-4, 0]: ``-4 (share of neighbouring words that no phrase of the task brings together)``, so that heaped
  up key words do not pay.

White space at either end of a text does not matter.
"""

from klqlit.data.miniature.hh_phrases import COURTEOUS_END, COURTEOUS_START, RUDE, SITUATIONS, TOPICS, all_sentences
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

_FACTS = [fact for topic in TOPICS.values() for fact in topic.facts.values()]
_TIPS = [situation.tip for situation in SITUATIONS.values()]
_KNOWN_PAIRS = frozenset(pair for sentence in all_sentences() for pair in pairs(sentence))


def score_answer(topic: str, aspect: str, situation: str, text: str) -> float:
    """Gold score of an answer; about 3.6 at best.

    Args:
        topic: a key of `TOPICS`, the row's column of that name; likewise ``aspect`` and ``situation``.
        aspect: one of `ASPECTS`.
        situation: a key of `SITUATIONS`.
        text: the answer, any text.
    """
    return sum(grade_answer(topic, aspect, situation, text).values())


def grade_answer(topic: str, aspect: str, situation: str, text: str) -> dict[str, float]:
    """The components of `score_answer` by name.

    Raises:
        ValueError: topic, aspect or situation is none of this task's.
    """
    if topic not in TOPICS or aspect not in TOPICS[topic].facts or situation not in SITUATIONS:
        raise ValueError(f"{topic=}, {aspect=}, {situation=} are no columns of MiniHH: score rows that MiniHH made")
    spoken = [set(words(sentence)) for sentence in sentences(text)]
    fact, tip = TOPICS[topic].facts[aspect], SITUATIONS[situation].tip
    return {
        "content": _content(fact, tip, spoken),
        "relevance": _relevance(topic, aspect, situation, spoken),
        "length": length_penalty(len(words(text)), shortest=13, longest=30, width=8.0),
        "manners": _manners(text, spoken),
        "language": -4.0 * strangeness(text, _KNOWN_PAIRS),
    }


def _content(fact: Phrase, tip: Phrase, spoken: list[set[str]]) -> float:
    told, advised = coverage(fact, spoken), coverage(tip, spoken)
    return told + 0.6 * advised + 0.8 * told * advised


def _relevance(topic: str, aspect: str, situation: str, spoken: list[set[str]]) -> float:
    name, fact, tip = TOPICS[topic].task.keys, TOPICS[topic].facts[aspect], SITUATIONS[situation].tip
    foreign_names = stated((other.task for other in TOPICS.values() if other.task.keys != name), spoken)
    foreign_facts = stated((other for other in _FACTS if other != fact), spoken)
    foreign_tips = stated((other for other in _TIPS if other != tip), spoken)
    to_the_point = name | fact.keys | tip.keys
    idle = sum(
        not (sentence & to_the_point or (i == 0 and _greets(sentence)) or (i == len(spoken) - 1 and _wishes(sentence)))
        for i, sentence in enumerate(spoken)
    )
    named = any(name <= sentence for sentence in spoken)
    strayed = 0.4 * min(2, foreign_names) + 0.5 * min(2, foreign_facts) + 0.3 * min(2, foreign_tips)
    return 0.4 * named - strayed - 0.3 * min(2, idle)


def _manners(text: str, spoken: list[set[str]]) -> float:
    rude = sum(len(sentence & RUDE) for sentence in spoken)
    courtesy = 0.0
    if spoken and not rude:
        courtesy = 0.4 * _greets(spoken[0]) + 0.4 * _wishes(spoken[-1])
    closed = bool(spoken) and is_closed(text)
    return courtesy - 0.6 * min(2, rude) - 1.5 * repetition(text) - 0.4 * (not closed)


def _greets(sentence: set[str]) -> bool:
    return bool(sentence & COURTEOUS_START)


def _wishes(sentence: set[str]) -> bool:
    return bool(sentence & COURTEOUS_END)
