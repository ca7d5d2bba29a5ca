"""How pairs are judged: in both orders, each question once, every judgment kept as it comes."""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal, final

from klqlit.judges.background import with_grace
from klqlit.judges.base import Judge, JudgeStopped, Judgment, Question, Verdict
from klqlit.judges.cache import JudgmentCache, canonical, question_key
from klqlit.judges.progress import JudgingProgress
from klqlit.judges.records import JudgedPair, Outcome, Pair

Order = Literal["a_first", "a_second"]

OTHER: dict[Order, Order] = {"a_first": "a_second", "a_second": "a_first"}

OUTCOMES: dict[Order, dict[Verdict, Outcome | None]] = {
    "a_first": {"first": "win", "second": "loss", "tie": "tie", "unreadable": None},
    "a_second": {"first": "loss", "second": "win", "tie": "tie", "unreadable": None},
}
"""What a verdict is for side A."""


class JudgingInterrupted(RuntimeError):
    """Judging was stopped from outside. Every judgment that came before is in the cache."""


def judge_pairs(
    judge: Judge,
    pairs: Sequence[Pair],
    *,
    cache: JudgmentCache | None,
    both_orders: bool = True,
    stopping: threading.Event | None = None,
    grace: float | None = None,
    progress: bool = False,
) -> list[JudgedPair]:
    """The pairs with the judge's verdicts, in their order.

    A pair is asked in both orders. A judge that cannot see the order is asked once, and its verdict stands for both.
    Two equal texts are a tie and nobody is asked. What the cache knows is not asked again, and equal questions are
    asked once.

    Args:
        judge: who is asked.
        pairs: what to judge.
        cache: where judgments are looked up, and kept as they come; None for nowhere.
        both_orders: False asks one order of each pair: a hash decides which response is shown first, not its side, so
            that neither side has the better place.
        stopping: once it is set, nothing more is asked; what is under way is still kept.
        grace: seconds after `stopping` for what is under way, which is then dropped; None for as long as it takes. The
            judge is read in a thread of its own, so that no judge can hold up the caller.
        progress: show how far it is, and the running win rate.

    Raises:
        JudgeStopped: the judge gave up; what came before is in the cache.
        JudgingInterrupted: `stopping` was set before all was judged; likewise.
        ValueError: the cache cannot be used.
    """
    plan = _Plan(judge, pairs, both_orders=both_orders)
    judgments = plan.known(cache)
    with JudgingProgress(len(plan.questions), shown=progress) as shown:
        for key, judgment in judgments.items():
            shown.add(plan.outcomes(key, judgment))
        try:
            for key, judgment in plan.ask(judge, judgments, stopping, grace):
                if cache is not None:
                    cache.put(key, judgment, plan.identity)
                judgments[key] = judgment
                shown.add(plan.outcomes(key, judgment))
        except JudgeStopped as error:
            raise JudgeStopped(f"{error} ({plan.kept(judgments)})") from error
        missing = len(plan.questions) - len(judgments)
        shown.fail(missing)
    if missing and stopping is not None and stopping.is_set():
        raise JudgingInterrupted(plan.kept(judgments))
    return plan.judged(judgments)


def missing_questions(
    judge: Judge, pairs: Sequence[Pair], *, cache: JudgmentCache | None, both_orders: bool = True
) -> list[Question]:
    """What `judge_pairs` would still ask: for the judge's estimate."""
    plan = _Plan(judge, pairs, both_orders=both_orders)
    return list(plan.missing(plan.known(cache)).values())


@final
class _Plan:
    """The questions that pairs come to, each once, and the way from the judgments back to the pairs."""

    def __init__(self, judge: Judge, pairs: Sequence[Pair], *, both_orders: bool) -> None:
        self.identity = canonical(judge.identity)
        self.questions: dict[str, Question] = {}
        self._pairs = pairs
        self._sees_order = judge.sees_order
        self._both_orders = both_orders and judge.sees_order
        self._keys = [self._add(pair) for pair in pairs]
        self._orders: dict[str, list[Order]] = {}
        for keys in self._keys:
            for order, key in keys.items():
                self._orders.setdefault(key, []).append(order)

    def _add(self, pair: Pair) -> dict[Order, str]:
        """The key of each order that is asked."""
        if pair.a == pair.b:
            return {}
        question = Question(
            prompt=pair.prompt,
            first=pair.a,
            second=pair.b,
            first_ended=pair.a_ended,
            second_ended=pair.b_ended,
            columns=pair.columns,
        )
        both: dict[Order, Question] = {"a_first": question, "a_second": question.swapped()}
        asked = {order: both[order] for order in self._asked_orders(pair)}
        keys = {order: question_key(self.identity, question) for order, question in asked.items()}
        self.questions.update({keys[order]: question for order, question in asked.items()})
        return keys

    def _asked_orders(self, pair: Pair) -> tuple[Order, ...]:
        return ("a_first", "a_second") if self._both_orders else (fair_order(pair),)

    def known(self, cache: JudgmentCache | None) -> dict[str, Judgment]:
        """What the cache has, by key."""
        if cache is None:
            return {}
        found = {key: cache.get(key) for key in self.questions}
        return {key: judgment for key, judgment in found.items() if judgment is not None}

    def missing(self, judgments: dict[str, Judgment]) -> dict[str, Question]:
        """The questions that have no judgment, by key."""
        return {key: question for key, question in self.questions.items() if key not in judgments}

    def ask(
        self, judge: Judge, judgments: dict[str, Judgment], stopping: threading.Event | None, grace: float | None
    ) -> Iterator[tuple[str, Judgment]]:
        """The judgments that are missing, as they come."""
        missing = self.missing(judgments)
        if missing:
            keys = list(missing)
            start = partial(judge.judge, list(missing.values()), stopping)
            given = start() if stopping is None or grace is None else with_grace(start, stopping, grace)
            for index, judgment in given:
                yield keys[index], judgment

    def kept(self, judgments: dict[str, Judgment]) -> str:
        """How far it is, in words."""
        return f"{len(judgments)} of {len(self.questions)} judgments kept; run again to go on"

    def outcomes(self, key: str, judgment: Judgment) -> list[Outcome | None]:
        """What a judgment is for side A, in each pair that asked for it."""
        return [OUTCOMES[order][judgment.verdict] for order in self._orders[key]]

    def judged(self, judgments: dict[str, Judgment]) -> list[JudgedPair]:
        """The pairs with their judgments."""
        return [self._judged(pair, keys, judgments) for pair, keys in zip(self._pairs, self._keys, strict=True)]

    def _judged(self, pair: Pair, keys: dict[Order, str], judgments: dict[str, Judgment]) -> JudgedPair:
        found = {order: judgments[key] for order, key in keys.items() if key in judgments}
        outcomes = {order: OUTCOMES[order][judgment.verdict] for order, judgment in found.items()}
        if not keys:
            outcomes = dict.fromkeys(self._asked_orders(pair), "tie")
        if not self._sees_order:
            outcomes |= {OTHER[order]: outcome for order, outcome in outcomes.items()}
        return JudgedPair(
            pair=pair,
            a_first=outcomes.get("a_first"),
            a_second=outcomes.get("a_second"),
            unreadable=sum(judgment.verdict == "unreadable" for judgment in found.values()),
            failed=len(keys) - len(found),
            both_orders=self._both_orders,
            answers={order: judgment.answer for order, judgment in found.items()},
        )


def fair_order(pair: Pair) -> Order:
    """The order to ask where one is enough: chosen by a hash of the texts, so that swapped sides ask the same question.

    Of equal texts either side is shown first in half of the pairs, too.
    """
    a, b = (hashlib.sha256(canonical([pair.prompt, text]).encode()).digest() for text in (pair.a, pair.b))
    return "a_first" if a < b or (a == b and a[0] % 2) else "a_second"
