"""Judges that know nothing of quality: what any claim about quality is to be held against."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any, final

from torchmetrics.functional.text import rouge_score

from klqlit.judges.base import Estimate, Judge, Judgment, Question
from klqlit.judges.local import higher, until_stopped

NOTHING = Estimate(requests=0, input_tokens=0, output_tokens=0, cost=0.0)
"""These judges ask nobody."""

TELLING = 8
"""Questions from which on it is no chance that one response of each is the reference text."""


@final
class RougeJudge(Judge):
    r"""Overlap with a reference text: the higher ROUGE-L F-measure is better.

    F = 2PR / (P + R), with P and R the length of the longest common subsequence of words over the length of the
    response and of the reference. Words are runs of the letters a to z and digits, in lower case, as in the usual
    ROUGE; texts in other scripts have none, and tie. A side that is the reference cannot be judged by it.

    Args:
        reference_column: the column of the prompt's row that holds the reference.
    """

    def __init__(self, reference_column: str = "completion") -> None:
        self.reference_column = reference_column

    @property
    def identity(self) -> dict[str, Any]:
        return {"class": "RougeJudge", "reference_column": self.reference_column}

    @property
    def sees_order(self) -> bool:
        return False

    def judge(
        self, questions: Sequence[Question], stopping: threading.Event | None = None
    ) -> Iterator[tuple[int, Judgment]]:
        """As in `Judge`.

        Raises:
            ValueError: a question has no reference, or one response of every question is the reference itself.
        """
        references = [self._reference(question) for question in questions]
        self._check_sides(questions, references)
        for index in until_stopped(range(len(questions)), stopping):
            question = questions[index]
            first, second = (rouge_l(text, references[index]) for text in (question.first, question.second))
            yield index, Judgment(verdict=higher(first, second), answer=f"ROUGE-L {first:.4f} and {second:.4f}")

    def estimate(self, questions: Sequence[Question]) -> Estimate:
        return NOTHING

    def _check_sides(self, questions: Sequence[Question], references: Sequence[str]) -> None:
        # Which response is shown first differs from question to question, so a side has no place of its own.
        own = [
            reference.strip() in (question.first.strip(), question.second.strip())
            for question, reference in zip(questions, references, strict=True)
        ]
        if len(own) >= TELLING and all(own):
            raise ValueError(
                f"reference_column={self.reference_column!r}: one of the two responses is the reference text itself in "
                f"every question ({len(own)}), and no response overlaps more with it: compare two other sides, such as "
                "a policy and its reference policy (--b reference), or name another column"
            )

    def _reference(self, question: Question) -> str:
        reference = question.columns.get(self.reference_column)
        if not isinstance(reference, str):
            raise ValueError(
                f"reference_column={self.reference_column!r}: the prompt {question.prompt[:80]!r} has no text in this "
                f"column (its columns: {', '.join(map(str, question.columns)) or 'none'}); name the one that holds "
                "reference texts"
            )
        return reference


@final
class LengthJudge(Judge):
    """The longer response is better, or the shorter one; words are what white space separates.

    How often it agrees with another judge shows how much of that judge's verdicts length explains.

    Args:
        prefer: "longer" or "shorter".

    Raises:
        ValueError: `prefer` is neither.
    """

    def __init__(self, prefer: str = "longer") -> None:
        if prefer not in ("longer", "shorter"):
            raise ValueError(f"prefer={prefer!r} must be 'longer' or 'shorter'")
        self.prefer = prefer

    @property
    def identity(self) -> dict[str, Any]:
        return {"class": "LengthJudge", "prefer": self.prefer}

    @property
    def sees_order(self) -> bool:
        return False

    def judge(
        self, questions: Sequence[Question], stopping: threading.Event | None = None
    ) -> Iterator[tuple[int, Judgment]]:
        sign = 1 if self.prefer == "longer" else -1
        for index in until_stopped(range(len(questions)), stopping):
            first, second = (len(text.split()) for text in (questions[index].first, questions[index].second))
            yield index, Judgment(verdict=higher(sign * first, sign * second), answer=f"{first} and {second} words")

    def estimate(self, questions: Sequence[Question]) -> Estimate:
        return NOTHING


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L F-measure of a text, from 0 to 1."""
    return rouge_score(text, reference, rouge_keys="rougeL")["rougeL_fmeasure"].item()
