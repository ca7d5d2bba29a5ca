"""The three tasks behind one face, for tests that hold for all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from klqlit.data.miniature import MiniHH, MiniSums, MiniTLDR, hh, sums, tldr
from klqlit.data.miniature.hh_score import score_answer
from klqlit.data.miniature.sums_score import score_solution
from klqlit.data.miniature.tldr_score import score_summary
from klqlit.data.source import Source, Split


@dataclass(frozen=True)
class Case:
    task: Callable[..., Source]
    draw: Callable[[Split, Random], Any]
    write: Callable[[Any, str, Random], str]
    score: Callable[[Any, str], float]
    grade: Callable[..., float]
    levels: dict[str, float]
    columns: tuple[str, ...]
    best: str
    prompt_tokens: int
    completion_tokens: int

    def gold(self, row: dict[str, str], column: str) -> float:
        """Gold score of the text in a row's column."""
        return self.grade(*(row[name] for name in self.columns), row[column])

    def mean_scores(self, samples: int = 120) -> dict[str, float]:
        """Mean gold score of each level."""
        rng = Random(3)
        problems = [self.draw("train", rng) for _ in range(samples)]
        return {
            level: sum(self.score(problem, self.write(problem, level, rng)) for problem in problems) / samples
            for level in self.levels
        }


questions = cache(hh.questions)


def draw_question(split: Split, rng: Random) -> hh.Question:
    return rng.choice(questions(split))


CASES = {
    "hh": Case(
        task=MiniHH,
        draw=draw_question,
        write=hh.write_answer,
        score=hh.score_question,
        grade=score_answer,
        levels=hh.LEVELS,
        columns=("topic", "aspect", "situation"),
        best="good",
        prompt_tokens=32,
        completion_tokens=56,
    ),
    "tldr": Case(
        task=MiniTLDR,
        draw=tldr.draw_post,
        write=tldr.write_summary,
        score=tldr.score_post,
        grade=score_summary,
        levels=tldr.LEVELS,
        columns=("person", "deed", "result", "ask"),
        best="complete",
        prompt_tokens=80,
        completion_tokens=48,
    ),
    "sums": Case(
        task=MiniSums,
        draw=sums.draw_story,
        write=sums.write_solution,
        score=sums.score_story,
        grade=score_solution,
        levels=sums.LEVELS,
        columns=("chain",),
        best="worked",
        prompt_tokens=48,
        completion_tokens=40,
    ),
}
