r"""The gold reward of `MiniSums` as a function of text.

    score = answer + steps + truth + format + length

A solution to "9 + 4 - 2" is best written "9 + 4 = 13. 13 - 2 = 11. The answer is 11.", for 3.5 in all.

- answer, in [0, 1.5]: ``1.5 [the number in "answer is N" is right]``; a text with several different answers
  has none;
- steps, in [0, 1.5]: ``1.5 (length of the longest run of right steps from the first on) / (number of steps)``, where a
  step is right if it is the chain's next equation;
- truth, in [-0.8, 0]: ``-0.4 min(2, equations that do not hold)``;
- format, in [-0.8, 0.5]: ``0.5 [the last sentence is "The answer is N."] - 0.4 min(2, sentences that are neither an
  equation nor the answer)``;
- length, in (-1, 0]: ``exp(-(gap / 3)^2) - 1``, gap the number of sentences beyond one a step and one for the answer.

White space at either end of a text does not matter.
"""

import re
from dataclasses import dataclass

from klqlit.data.miniature.text import length_penalty, sentences

_EQUATION = re.compile(r"(\d{1,9}) ([+-]) (\d{1,9}) = (\d{1,9})")
_ANSWER = re.compile(r"answer is (\d{1,9})\b")
_CLOSING = re.compile(r"The answer is \d{1,9}\.")


@dataclass(frozen=True, slots=True)
class Step:
    """One equation: left + change = right, where a negative change is written as a difference."""

    left: int
    change: int
    right: int

    def __str__(self) -> str:
        return f"{self.left} {'+' if self.change > 0 else '-'} {abs(self.change)} = {self.right}"

    @property
    def holds(self) -> bool:
        return self.left + self.change == self.right


@dataclass(frozen=True, slots=True)
class Chain:
    """A number and what is added to it, step by step; as text "9 + 4 - 2"."""

    start: int
    changes: tuple[int, ...]

    def __str__(self) -> str:
        return " ".join([str(self.start), *(f"{'+' if change > 0 else '-'} {abs(change)}" for change in self.changes)])

    @property
    def totals(self) -> list[int]:
        """The number after each step."""
        return [self.start + sum(self.changes[: i + 1]) for i in range(len(self.changes))]

    @property
    def total(self) -> int:
        return self.totals[-1]

    @property
    def steps(self) -> list[Step]:
        lefts = [self.start, *self.totals]
        return [Step(left, change, left + change) for left, change in zip(lefts, self.changes, strict=False)]


def read_chain(text: str) -> Chain:
    """The chain written as "9 + 4 - 2".

    Raises:
        ValueError: the text is none.
    """
    if not re.fullmatch(r"\d{1,9}( [+-] \d{1,9})+", text):
        raise ValueError(f"chain={text!r} is no column of MiniSums, such as '9 + 4 - 2': score rows that MiniSums made")
    start, *rest = text.split(" ")
    return Chain(int(start), tuple(int(sign + number) for sign, number in zip(rest[::2], rest[1::2], strict=True)))


def score_solution(chain: str, text: str) -> float:
    """Gold score of a solution; 3.5 at best.

    Args:
        chain: the sums to be done, such as "9 + 4 - 2": the row's column of that name.
        text: the solution, any text.
    """
    return sum(grade_solution(chain, text).values())


def grade_solution(chain: str, text: str) -> dict[str, float]:
    """The components of `score_solution` by name.

    Raises:
        ValueError: `chain` is no chain of sums.
    """
    goal = read_chain(chain)
    spoken = sentences(text)
    equations = [_read_step(match) for match in _EQUATION.findall(text)]
    false = sum(not equation.holds for equation in equations)
    return {
        "answer": 1.5 * (set(_ANSWER.findall(text)) == {str(goal.total)}),
        "steps": 1.5 * _right_steps(goal, equations) / len(goal.changes),
        "truth": -0.4 * min(2, false),
        "format": _format(spoken),
        "length": length_penalty(len(spoken), shortest=0, longest=len(goal.changes) + 1, width=3.0),
    }


def _read_step(match: tuple[str, str, str, str]) -> Step:
    left, sign, change, right = match
    return Step(int(left), int(sign + change), int(right))


def _right_steps(goal: Chain, equations: list[Step]) -> int:
    count = 0
    for wanted, written in zip(goal.steps, equations, strict=False):
        if written != wanted:
            break
        count += 1
    return count


def _format(spoken: list[str]) -> float:
    closed = bool(spoken) and bool(_CLOSING.fullmatch(spoken[-1]))
    idle = sum(not (_EQUATION.fullmatch(sentence.rstrip(".")) or _ANSWER.search(sentence)) for sentence in spoken)
    return 0.5 * closed - 0.4 * min(2, idle)
