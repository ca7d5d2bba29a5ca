"""What a judge is: questions in, judgments out."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Verdict = Literal["first", "second", "tie", "unreadable"]
"""The better response by the place in which it was shown; "unreadable" where the judge's answer names none."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Question:
    """Two responses to a prompt, in the order in which a judge sees them.

    Attributes:
        prompt: the prompt as the policies saw it.
        first: the response shown first.
        second: the response shown second.
        first_ended: False where the length limit cut the first response.
        second_ended: likewise of the second.
        columns: further columns of the prompt's row: what gold rewards and reference texts are read from.
    """

    prompt: str
    first: str
    second: str
    first_ended: bool = True
    second_ended: bool = True
    columns: Mapping[str, Any] = field(default_factory=dict)

    def swapped(self) -> "Question":
        """The same responses in the other order."""
        return replace(
            self,
            first=self.second,
            second=self.first,
            first_ended=self.second_ended,
            second_ended=self.first_ended,
        )


@dataclass(kw_only=True, slots=True, frozen=True)
class Judgment:
    """What a judge made of a question.

    Attributes:
        verdict: the better response.
        answer: the judge's own words or numbers, from which the verdict was read.
    """

    verdict: Verdict
    answer: str


@dataclass(kw_only=True, slots=True, frozen=True)
class Estimate:
    """What asking would take: printed before anything is asked.

    Attributes:
        requests: calls to a model.
        input_tokens: tokens to read, estimated where the judge's tokenizer is not here.
        output_tokens: tokens to write, at most.
        cost: about, in the currency of the judge's prices; None where no prices were given.
    """

    requests: int
    input_tokens: int
    output_tokens: int
    cost: float | None


class JudgeStopped(RuntimeError):
    """A judge gave up. Every judgment that it gave before stands."""


class Judge(ABC):
    """Compares two responses to a prompt. Subclass it, or choose one of this package."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything that may change a verdict, as JSON: class, model, template and its hash, settings. No secrets.

        It names the judge in every result, and judgments are kept under it.
        """

    @property
    @abstractmethod
    def sees_order(self) -> bool:
        """False where the order of the responses cannot change the verdict, so that one order is enough."""

    @abstractmethod
    def judge(
        self, questions: Sequence[Question], stopping: threading.Event | None = None
    ) -> Iterator[tuple[int, Judgment]]:
        """Judgments as they come, in any order, each with the index of its question.

        A question that could not be asked (the request failed after its retries) is left out, so that a later run asks
        it again. Closing the iterator drops what is under way.

        Args:
            questions: what to judge.
            stopping: once it is set, no further question is begun; those under way are finished and given, and then
                the iterator ends. A signal handler may set it.

        Raises:
            JudgeStopped: the judge cannot go on: too many requests failed, or the first shows that all will.
        """

    @abstractmethod
    def estimate(self, questions: Sequence[Question]) -> Estimate:
        """What `judge` would take for these questions."""
