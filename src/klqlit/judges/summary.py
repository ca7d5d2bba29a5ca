"""What a set of judged pairs says: the numbers as JSON, as a table, and in sentences."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from rich.markup import escape
from rich.table import Table

from klqlit.judges.records import VALUES, JudgedPair, Outcome
from klqlit.judges.statistics import (
    NotEstimable,
    bootstrap,
    length_controlled,
    prompt_means,
    rate_where,
    sign_test,
)

FEW_PROMPTS = 100
"""Below, an interval at 95 % is wider than about ten points each way."""
MUCH_INCONSISTENCY = 0.25
"""A coin would change its mind between the orders every second time."""
NOTEWORTHY = 0.05
"""Differences between rates from here on are pointed out."""


def words(text: str) -> int:
    """Length in words: what stands between white space."""
    return len(text.split())


def characters(text: str) -> int:
    """Length in characters, for languages written without spaces."""
    return len(text)


def summarise(
    judged: Sequence[JudgedPair],
    *,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
    length: Callable[[str], int] = words,
) -> dict[str, Any]:
    """Counts and statistics of judged pairs, from side A's view, ready for JSON.

    Args:
        judged: the pairs; those of one prompt share its id.
        level: of the intervals.
        draws: resamples of the bootstrap.
        seed: of the resamples.
        length: measures a completion.

    Returns:
        "counts", "statistics", "level" and "draws". Rates are None where nothing with an outcome is left to count.

    Raises:
        ValueError: `level` or `draws` out of range.
    """
    return {
        "counts": _counts(judged),
        "statistics": _statistics(judged, level=level, draws=draws, seed=seed, length=length),
        "level": level,
        "draws": draws,
    }


def _counts(judged: Sequence[JudgedPair]) -> dict[str, int]:
    decided = [pair for pair in judged if pair.outcome is not None]
    shown = [pair for pair in judged if pair.shows_order]
    return {
        "pairs": len(judged),
        "prompts": len({pair.pair.id for pair in judged}),
        "judged": len(decided),
        "judged_prompts": len({pair.pair.id for pair in decided}),
        "prompts_a_first": len({pair.pair.id for pair in shown if pair.a_first is not None}),
        "prompts_a_second": len({pair.pair.id for pair in shown if pair.a_second is not None}),
        "both_orders": sum(pair.a_first is not None and pair.a_second is not None for pair in shown),
        "one_order": sum(not pair.both_orders and pair.outcome is not None for pair in shown),
        "unreadable": sum(pair.unreadable for pair in judged),
        "failed": sum(pair.failed for pair in judged),
        "inconsistent": sum(pair.inconsistent for pair in judged),
        "empty_a": sum(not pair.pair.a.strip() for pair in judged),
        "empty_b": sum(not pair.pair.b.strip() for pair in judged),
        "identical": sum(pair.pair.a == pair.pair.b for pair in judged),
    }


def _statistics(
    judged: Sequence[JudgedPair], *, level: float, draws: int, seed: int, length: Callable[[str], int]
) -> dict[str, Any]:
    decided = [pair for pair in judged if pair.outcome is not None]
    values, prompts = _arrays([(pair, pair.outcome) for pair in decided])
    means = prompt_means(values, prompts)
    differences = np.array([length(pair.pair.a) - length(pair.pair.b) for pair in decided], dtype=float)
    shown = [pair for pair in judged if pair.shows_order]
    both = [pair for pair in shown if pair.a_first is not None and pair.a_second is not None]
    return {
        "win_rate": asdict(bootstrap(means, level=level, draws=draws, seed=seed)) if decided else None,
        "wins": int((values == VALUES["win"]).sum()),
        "ties": int((values == VALUES["tie"]).sum()),
        "losses": int((values == VALUES["loss"]).sum()),
        "sign_test": sign_test(int((means > 0.5).sum()), int((means < 0.5).sum())) if decided else None,
        **_length_controlled(values, differences, prompts, level),
        "inconsistent_rate": sum(pair.inconsistent for pair in both) / len(both) if both else None,
        "by_position": _by_position(shown),
        "by_length": _by_length(values, differences, prompts),
        "longer_wins": _longer_wins(values, differences, prompts),
    }


def _arrays(
    verdicts: Sequence[tuple[JudgedPair, Outcome | None]],
) -> tuple[Float[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Values of the verdicts that there are, and a number for the prompt of each."""
    given = [(pair.pair.id, VALUES[outcome]) for pair, outcome in verdicts if outcome is not None]
    numbers: dict[str, int] = {}
    prompts = [numbers.setdefault(prompt, len(numbers)) for prompt, _ in given]
    return np.array([value for _, value in given], dtype=float), np.array(prompts, dtype=int)


def _length_controlled(
    values: Float[np.ndarray, " N"], differences: Float[np.ndarray, " N"], prompts: Int[np.ndarray, " N"], level: float
) -> dict[str, Any]:
    try:
        return {"length_controlled": asdict(length_controlled(values, differences, prompts, level=level))}
    except NotEstimable as reason:
        return {"length_controlled": None, "length_controlled_missing": str(reason)}


def _by_position(shown: Sequence[JudgedPair]) -> dict[str, float] | None:
    """Rates of the single verdicts by the place in which A was shown; None where A was shown in one place only."""
    rates = {}
    for place, verdicts in (
        ("first", [(pair, pair.a_first) for pair in shown]),
        ("second", [(pair, pair.a_second) for pair in shown]),
    ):
        values, prompts = _arrays(verdicts)
        rate = rate_where(values, prompts, np.ones(len(values), dtype=bool))
        if rate is None:
            return None
        rates[place] = rate
    return rates


def _by_length(
    values: Float[np.ndarray, " N"], differences: Float[np.ndarray, " N"], prompts: Int[np.ndarray, " N"]
) -> dict[str, Any]:
    groups = {"a_longer": differences > 0, "b_longer": differences < 0, "equal": differences == 0}
    return {
        name: {"rate": rate_where(values, prompts, chosen), "pairs": int(chosen.sum())}
        for name, chosen in groups.items()
    }


def _longer_wins(
    values: Float[np.ndarray, " N"], differences: Float[np.ndarray, " N"], prompts: Int[np.ndarray, " N"]
) -> float | None:
    """Win rate of the longer side, whichever it is; None where lengths are equal throughout."""
    unequal: Bool[np.ndarray, " N"] = differences != 0
    return rate_where(np.where(differences > 0, values, 1 - values), prompts, unequal)


def as_table(summary: dict[str, Any], name_a: str, name_b: str) -> Table:
    """The numbers of a summary, one a line."""
    counts, statistics = summary["counts"], summary["statistics"]
    table = Table(title=escape(f"{name_a} against {name_b}"), title_justify="left")
    table.add_column(escape(f"from the view of {name_a}"))
    table.add_column("", justify="right")
    table.add_column(f"{_percent(summary['level'], 0)} interval", justify="right")
    for label, rate in (
        ("win rate, ties as half", statistics["win_rate"]),
        ("the same at equal length", statistics["length_controlled"]),
    ):
        table.add_row(label, _percent(rate["rate"]), _interval(rate)) if rate else table.add_row(label, "-", "-")
    table.add_row("wins / ties / losses", " / ".join(str(statistics[kind]) for kind in ("wins", "ties", "losses")))
    table.add_row("p of the sign test", "-" if statistics["sign_test"] is None else f"{statistics['sign_test']:.2g}")
    position = statistics["by_position"] or {"first": None, "second": None}
    table.add_row("win rate where shown first", _percent(position["first"]))
    table.add_row("win rate where shown second", _percent(position["second"]))
    table.add_row("verdict changed with the order", _percent(statistics["inconsistent_rate"]))
    for label, group in (("longer", "a_longer"), ("shorter", "b_longer"), ("equally long", "equal")):
        found = statistics["by_length"][group]
        table.add_row(f"win rate where {label} (n = {found['pairs']})", _percent(found["rate"]))
    table.add_row("pairs / with an outcome", f"{counts['pairs']} / {counts['judged']}")
    return table


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def _interval(rate: dict[str, float]) -> str:
    return f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f} %"


def sentences(summary: dict[str, Any], name_a: str, name_b: str) -> list[str]:
    """What the summary says in words, and what a reader has to beware of."""
    counts, statistics = summary["counts"], summary["statistics"]
    missing = counts["pairs"] - counts["judged"]
    found = []
    if statistics["win_rate"] is None:
        found.append(f"None of {counts['pairs']} pairs has an outcome: there is no win rate.")
    else:
        found += [_main(summary, name_a, name_b), *_on_size(summary), *_on_length(summary, name_a, name_b)]
    found += _on_position(summary, name_a)
    if missing:
        found.append(
            f"{missing} of {counts['pairs']} pairs have no outcome and are left out "
            f"({counts['unreadable']} unreadable answers, {counts['failed']} failed requests)."
        )
    return found


def _main(summary: dict[str, Any], name_a: str, name_b: str) -> str:
    rate, prompts = summary["statistics"]["win_rate"], summary["counts"]["judged_prompts"]
    return (
        f"{name_a} wins {_percent(rate['rate'])} ({_percent(summary['level'], 0)} interval {_interval(rate)}) of "
        f"{prompts} prompt{'s' if prompts != 1 else ''} against {name_b}: {_verdict(summary, name_a, name_b)}."
    )


def _verdict(summary: dict[str, Any], name_a: str, name_b: str) -> str:
    rate, chance = summary["statistics"]["win_rate"], summary["statistics"]["sign_test"]
    if rate["low"] <= 0.5 <= rate["high"]:
        return "the interval holds 50 %, so neither is shown to be ahead"
    # Resamples of a few prompts hardly show what others could have been; the sign test is exact for any number.
    if chance > 1 - summary["level"]:
        return (
            f"the interval leaves out 50 %, but the sign test (p = {chance:.2g}) does not, so neither is shown to be "
            "ahead"
        )
    return f"{name_a if rate['low'] > 0.5 else name_b} is ahead"


def _on_size(summary: dict[str, Any]) -> list[str]:
    counts, statistics = summary["counts"], summary["statistics"]
    found = []
    if counts["judged"] in (statistics["wins"], statistics["ties"], statistics["losses"]):
        kind = next(kind for kind in ("wins", "ties", "losses") if statistics[kind])
        found.append(f"All outcomes are {kind}: the interval is what so few prompts leave open, not a spread seen.")
    if counts["judged_prompts"] < FEW_PROMPTS:
        found.append(f"Fewer than {FEW_PROMPTS} prompts: expect the rate to move by many points with other prompts.")
    return found


def _on_length(summary: dict[str, Any], name_a: str, name_b: str) -> list[str]:
    statistics = summary["statistics"]
    rate, controlled, groups = statistics["win_rate"], statistics["length_controlled"], statistics["by_length"]
    found = []
    if statistics["longer_wins"] is not None:
        found.append(f"The longer completion wins {_percent(statistics['longer_wins'])}.")
    if controlled is None:
        return [*found, f"A length-controlled win rate cannot be estimated: {statistics['length_controlled_missing']}."]
    text = f"At equal length {name_a} would win {_percent(controlled['rate'])} ({_interval(controlled)})"
    gap = controlled["rate"] - rate["rate"]
    if abs(gap) >= NOTEWORTHY or (controlled["rate"] - 0.5) * (rate["rate"] - 0.5) < 0:
        text += f", {100 * abs(gap):.1f} points {'more' if gap > 0 else 'less'} than as they are: give both rates"
    found.append(text + ".")
    for group, name in (("b_longer", name_a), ("a_longer", name_b)):
        if not groups[group]["pairs"]:
            found.append(f"{name}'s completion is never the shorter one: equal length is beyond what was seen.")
    return found


def _on_position(summary: dict[str, Any], name_a: str) -> list[str]:
    counts, statistics = summary["counts"], summary["statistics"]
    position, inconsistent = statistics["by_position"], statistics["inconsistent_rate"]
    found = []
    if position is not None:
        first, second = counts["prompts_a_first"], counts["prompts_a_second"]
        text = f"{name_a} wins {_percent(position['first'])} of {first} prompts where shown first and "
        text += f"{_percent(position['second'])} of {second} where shown second"
        gap = position["first"] - position["second"]
        # Two standard errors of the gap, if the values vary as widely as they can.
        if abs(gap) >= max(NOTEWORTHY, (1 / first + 1 / second) ** 0.5):
            text += f": the judge prefers what it sees {'first' if gap > 0 else 'second'}"
        found.append(text + ".")
    if inconsistent is not None and inconsistent >= MUCH_INCONSISTENCY:
        found.append(
            f"The verdict changed with the order in {_percent(inconsistent)} of {counts['both_orders']} pairs, which "
            "count as ties: the judge is unsure of many of them, or looks at their places."
        )
    alone = counts["one_order"]
    if alone > 0:
        subject = "All pairs" if alone == counts["judged"] else f"{alone} of {counts['judged']} pairs"
        found.append(
            f"{subject} were judged in one order only: if this judge sees the order, its taste for a place is part of "
            "these rates."
        )
    return found
