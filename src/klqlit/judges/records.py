"""Records of the protocol: pairs of completions, and what a judge made of them, seen from side A."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["win", "tie", "loss"]
"""Of side A."""

VALUES: dict[Outcome, float] = {"win": 1.0, "tie": 0.5, "loss": 0.0}
"""A tie counts as half a win for each side."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Pair:
    """Two completions of a prompt.

    Attributes:
        id: of the prompt: its own `id` column, or a hash of its text. Several pairs may share one.
        prompt: the prompt's text.
        a: side A's completion.
        b: side B's completion.
        a_ended: False where the length limit cut A's completion.
        b_ended: likewise of B.
        columns: further columns of the prompt's row.
    """

    id: str
    prompt: str
    a: str
    b: str
    a_ended: bool = True
    b_ended: bool = True
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True, frozen=True)
class JudgedPair:
    """A pair with the judge's verdicts.

    Attributes:
        pair: what was judged.
        a_first: A's outcome where A was shown first; None where that order was not judged or not readable.
        a_second: A's outcome where A was shown second; likewise.
        unreadable: answers to this pair from which no verdict could be read.
        failed: requests for this pair that failed.
        both_orders: both orders were asked; where False, one is enough. With two outcomes all the same, the judge does
            not see the order, and its verdict stands for both.
        answers: the judge's own words, under `a_first` and `a_second` as far as there are any.
    """

    pair: Pair
    a_first: Outcome | None
    a_second: Outcome | None
    unreadable: int = 0
    failed: int = 0
    both_orders: bool = True
    answers: Mapping[str, str] = field(default_factory=dict)

    @property
    def outcome(self) -> Outcome | None:
        """A's outcome: where the two orders disagree, a tie; None where an order that was asked gave no verdict."""
        if not self.both_orders:
            return self.a_first or self.a_second
        if self.a_first is None or self.a_second is None:
            return None
        return self.a_first if self.a_first == self.a_second else "tie"

    @property
    def shows_order(self) -> bool:
        """A judge who sees the order was asked about two texts: the verdict may say something of the place."""
        sees_order = self.both_orders or self.a_first is None or self.a_second is None
        return sees_order and self.pair.a != self.pair.b

    @property
    def inconsistent(self) -> bool:
        """The verdict changed with the order."""
        return self.a_first is not None and self.a_second is not None and self.a_first != self.a_second
