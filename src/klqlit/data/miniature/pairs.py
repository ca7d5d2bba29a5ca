"""Rows from a problem, a writer of answers at several levels of quality, and a gold score."""

import math
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Protocol, TypeVar, runtime_checkable

from klqlit.data.source import Row


@runtime_checkable
class Problem(Protocol):
    """What a prompt is made of."""

    @property
    def prompt(self) -> str:
        """The prompt as the policy reads it."""

    @property
    def columns(self) -> dict[str, str]:
        """What the gold reward has to know about the prompt."""


ProblemT = TypeVar("ProblemT", bound=Problem)


def draw_rows(
    problems: Iterable[ProblemT],
    *,
    write: Callable[[ProblemT, str, Random], str],
    score: Callable[[ProblemT, str], float],
    levels: Mapping[str, float],
    temperature: float,
    rng: Random,
) -> list[Row]:
    """One row a problem: a completion to imitate and a pair to compare.

    The completion and the first answer of the pair are of levels drawn by the given weights; the pair's second
    answer is of another level than its first.

    Args:
        problems: what the prompts are made of.
        write: an answer to a problem at a level, with its leading space.
        score: gold score of an answer.
        levels: weight of each level in the text to imitate.
        temperature: of the Bradley-Terry noise, in units of the score.
        rng: source of all randomness.
    """
    rows: list[Row] = []
    for problem in problems:
        level = _draw(levels, rng)
        first = _draw(levels, rng)
        second = _draw({name: weight for name, weight in levels.items() if name != first}, rng)
        pair = write(problem, first, rng), write(problem, second, rng)
        margin = score(problem, pair[0]) - score(problem, pair[1])
        chosen, rejected = pair if rng.random() < preference(margin, temperature) else pair[::-1]
        completion = write(problem, level, rng)
        texts = {"prompt": problem.prompt, "completion": completion, "chosen": chosen, "rejected": rejected}
        rows.append(texts | problem.columns)
    return rows


def preference(margin: float, temperature: float) -> float:
    """Bradley-Terry probability that the first of two answers is preferred: sigmoid(margin / temperature)."""
    return 0.5 * (1.0 + math.tanh(0.5 * margin / temperature))


def _draw(weights: Mapping[str, float], rng: Random) -> str:
    return rng.choices(list(weights), weights=list(weights.values()))[0]
