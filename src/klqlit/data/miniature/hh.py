"""`MiniHH`: short questions about pastimes, and answers from helpful to rude."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, product
from random import Random
from typing import final
from zlib import crc32

from klqlit.data.miniature import hh_phrases as say
from klqlit.data.miniature.hh_score import score_answer
from klqlit.data.miniature.pairs import draw_rows
from klqlit.data.miniature.text import capitalise, first_fitting
from klqlit.data.source import Row, Source, Split, TokenCounter

HEAD, TAIL = "\n\nHuman: ", "\n\nAssistant:"

LEVELS = {
    "good": 0.10,
    "plain": 0.27,
    "curt": 0.10,
    "vague": 0.10,
    "wrong": 0.14,
    "off_topic": 0.15,
    "rambling": 0.07,
    "rude": 0.07,
}
"""How often each level of quality occurs in the text to imitate."""

TEMPERATURE = 0.5
"""Of the noise in the preferences, in units of the gold score."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with what a good answer depends on."""

    prompt: str
    topic: str
    aspect: str
    situation: str

    @property
    def columns(self) -> dict[str, str]:
        return {"topic": self.topic, "aspect": self.aspect, "situation": self.situation}


@final
class MiniHH(Source):
    """Single-turn questions with answers of mixed quality, made from a seed.

    A question joins a topic, an aspect of it and the asker's situation. One in eight of these combinations, the same
    for every seed, is asked in the validation split alone. Prompts take 20 words at most, answers 48.

    Args:
        seed: of everything random; the same rows come from the same seed in every process.
        size: rows of the training split. Prompts are all used once before one comes again.
        validation_size: rows of the validation split.
    """

    def __init__(self, seed: int = 0, size: int = 16_000, validation_size: int = 512) -> None:
        self.seed = seed
        self.sizes: dict[Split, int] = {"train": size, "validation": validation_size}

    def rows(self, split: Split) -> list[Row]:
        rng = Random(f"mini_hh {split} {self.seed}")
        return draw_rows(
            islice(_shuffled_passes(questions(split), rng), self.sizes[split]),
            write=write_answer,
            score=score_question,
            levels=LEVELS,
            temperature=TEMPERATURE,
            rng=rng,
        )

    def shorten(self, prompt: str, count: TokenCounter, limit: int) -> str:
        """Drops words from the question's beginning."""
        spoken = prompt.removeprefix(HEAD).removesuffix(TAIL).split(" ")
        cuts = (HEAD + " ".join(spoken[start:]) + TAIL for start in range(1, len(spoken) + 1))
        return prompt if count(prompt) <= limit else first_fitting(cuts, count, limit)


def questions(split: Split) -> list[Question]:
    """All questions of a split."""
    found = []
    for topic, aspect, situation in product(say.TOPICS, say.ASPECTS, say.SITUATIONS):
        held_out = crc32(f"{topic}|{aspect}|{situation}".encode()) % 8 == 0
        if held_out == (split == "validation"):
            for wording in say.QUESTIONS[aspect]:
                question = wording.format(task=topic)
                for text in (f"{situation}. {question}", f"{question} {situation}."):
                    found.append(Question(HEAD + text + TAIL, topic, aspect, situation))
    return found


def score_question(question: Question, text: str) -> float:
    """Gold score of an answer to a question."""
    return score_answer(question.topic, question.aspect, question.situation, text)


def write_answer(question: Question, level: str, rng: Random) -> str:
    """An answer of the given level of quality, with its leading space."""
    return " " + " ".join(_WRITERS[level](question, rng))


def _good(question: Question, rng: Random) -> list[str]:
    sentences = _named_fact(question, rng), _tip(question.situation, rng)
    return [rng.choice(say.GREETINGS), *sentences, rng.choice(say.WISHES)]


def _plain(question: Question, rng: Random) -> list[str]:
    """What was asked, with or without courtesy and advice."""
    advice = _maybe((_tip(question.situation, rng),), rng)
    return [*_maybe(say.GREETINGS, rng), _fact(question, rng), *advice, *_maybe(say.WISHES, rng)]


def _curt(question: Question, rng: Random) -> list[str]:
    return [rng.choice((_fact, _bare))(question, rng)]


def _vague(question: Question, rng: Random) -> list[str]:
    return [*_maybe(say.GREETINGS, rng), *rng.sample(say.EVASIONS, rng.choice((1, 2))), *_maybe(say.WISHES, rng)]


def _wrong(question: Question, rng: Random) -> list[str]:
    """Misses the aspect or the situation, or tells another topic's fact as this one's."""
    topic, aspect, situation = question.topic, question.aspect, question.situation
    other_topic = replace(question, topic=_other(list(say.TOPICS), topic, rng))
    fact = rng.choice(
        (
            _named_fact(replace(question, aspect=_other(list(say.ASPECTS), aspect, rng)), rng),
            _named_fact(question, rng),
            _named_fact(other_topic, rng).replace(other_topic.topic, topic),
        )
    )
    advice = _maybe((_tip(_other(list(say.SITUATIONS), situation, rng), rng),), rng)
    return [*_maybe(say.GREETINGS, rng), fact, *advice, *_maybe(say.WISHES, rng)]


def _off_topic(question: Question, rng: Random) -> list[str]:
    """An answer to a question about another topic."""
    other = Question(
        prompt=question.prompt,
        topic=_other(list(say.TOPICS), question.topic, rng),
        aspect=rng.choice(say.ASPECTS),
        situation=rng.choice(list(say.SITUATIONS)),
    )
    return rng.choice((_good, _plain))(other, rng)


def _rambling(question: Question, rng: Random) -> list[str]:
    first, second = rng.sample(say.ASIDES, 2)
    fact = _fact(question, rng)
    return rng.choice(
        ([first, fact, second], [first, fact, _tip(question.situation, rng), second], [fact, first, fact])
    )


def _rude(question: Question, rng: Random) -> list[str]:
    fact = [_fact(question, rng)] if rng.random() < 0.5 else []
    return [rng.choice(say.INSULTS), *fact, *_maybe(say.DISMISSALS, rng)]


def _fact(question: Question, rng: Random) -> str:
    return _framed(question, rng.choice(say.FRAMES[question.aspect]))


def _named_fact(question: Question, rng: Random) -> str:
    return _framed(question, rng.choice([frame for frame in say.FRAMES[question.aspect] if "{task}" in frame]))


def _framed(question: Question, frame: str) -> str:
    return frame.format(task=question.topic, fact=say.TOPICS[question.topic].facts[question.aspect].text)


def _bare(question: Question, rng: Random) -> str:
    return capitalise(say.TOPICS[question.topic].facts[question.aspect].text) + "."


def _tip(situation: str, rng: Random) -> str:
    return rng.choice(say.TIP_FRAMES).format(tip=say.SITUATIONS[situation].tip.text)


def _maybe(phrases: tuple[str, ...], rng: Random) -> list[str]:
    return [rng.choice(phrases)] if rng.random() < 0.5 else []


def _other(options: list[str], taken: str, rng: Random) -> str:
    return rng.choice([option for option in options if option != taken])


def _shuffled_passes(found: list[Question], rng: Random) -> Iterator[Question]:
    while True:
        yield from rng.sample(found, len(found))


_WRITERS: dict[str, Callable[[Question, Random], list[str]]] = {
    "good": _good,
    "plain": _plain,
    "curt": _curt,
    "vague": _vague,
    "wrong": _wrong,
    "off_topic": _off_topic,
    "rambling": _rambling,
    "rude": _rude,
}
