"""A judge whose verdicts one can work out by eye, and that counts what it is asked."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

from klqlit.judges.base import Estimate, Judge, JudgeStopped, Judgment, Question, Verdict
from klqlit.judges.records import Pair


def longer(question: Question) -> Verdict:
    """More characters win."""
    first, second = len(question.first), len(question.second)
    return "tie" if first == second else "first" if first > second else "second"


@final
class SmallJudge(Judge):
    """Gives its verdicts in reverse order, as judgments may come in any.

    Args:
        verdict: of a question.
        sees_order: as `Judge.sees_order`.
        name: makes judges differ.
        fails: prompts to whose questions there is no answer.
        stops_after: judgments after which it gives up; None for never.
    """

    def __init__(
        self,
        verdict: Callable[[Question], Verdict] = longer,
        *,
        sees_order: bool = True,
        name: str = "small",
        fails: Sequence[str] = (),
        stops_after: int | None = None,
    ) -> None:
        self.verdict = verdict
        self.name = name
        self.fails = fails
        self.stops_after = stops_after
        self.asked: Counter[tuple[str, str, str]] = Counter()
        self._sees_order = sees_order

    @property
    def identity(self) -> dict[str, Any]:
        return {"class": "SmallJudge", "name": self.name}

    @property
    def sees_order(self) -> bool:
        return self._sees_order

    def judge(
        self, questions: Sequence[Question], stopping: threading.Event | None = None
    ) -> Iterator[tuple[int, Judgment]]:
        given = 0
        for index, question in reversed(list(enumerate(questions))):
            if stopping is not None and stopping.is_set():
                return
            if given == self.stops_after:
                raise JudgeStopped("the small judge is tired")
            self.asked[question.prompt, question.first, question.second] += 1
            if question.prompt not in self.fails:
                given += 1
                yield index, Judgment(verdict=self.verdict(question), answer=f"I say {self.verdict(question)}")

    def estimate(self, questions: Sequence[Question]) -> Estimate:
        return Estimate(requests=len(questions), input_tokens=10 * len(questions), output_tokens=1, cost=None)


def make_pairs(count: int, **options: Any) -> list[Pair]:
    """Pairs of which A's completion is the longer one in every second, from the first on."""
    return [
        Pair(id=str(i), prompt=f"What is {i}?", a="x" * (3 if i % 2 == 0 else 1), b="yy", **options)
        for i in range(count)
    ]
