"""How far two judges agree on the same pairs."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from klqlit.judges.records import VALUES, JudgedPair, Outcome
from klqlit.judges.statistics import agreement, prompt_means, win_rate


def compare_judges(one: Sequence[JudgedPair], other: Sequence[JudgedPair]) -> dict[str, Any]:
    """Agreement of two judges on the pairs that both gave an outcome, ready for JSON.

    Pairs are the same where prompt and both completions are; the n-th such pair of one judge belongs to the n-th of the
    other.

    Returns:
        "pairs" with both outcomes, "undecided" pairs of both judges where one has none, "only_in_one", "only_in_other",
        "raw", "kappa" (None where not defined), "win_rate" of A by each judge on those pairs, and "table": the number
        of pairs by the outcome of one, then of the other.

    Raises:
        ValueError: there is no pair to which both gave an outcome.
    """
    matched, only_in_one, only_in_other = _match(one, other)
    decided = [(x, y) for x, y in matched if x.outcome is not None and y.outcome is not None]
    if not decided:
        raise ValueError(
            f"the two judges have no pair in common to which both gave an outcome ({len(matched)} pairs with the same "
            "prompt, A and B are in both files): compare judgments of the same completions, with the same side as A"
        )
    first, second = (np.array([VALUES[pair.outcome] for pair in side]) for side in zip(*decided, strict=True))
    found = agreement(first, second)
    numbers = {key: i for i, key in enumerate(dict.fromkeys(x.pair.id for x, _ in decided))}
    prompts = np.array([numbers[x.pair.id] for x, _ in decided])
    return {
        "pairs": len(decided),
        "undecided": len(matched) - len(decided),
        "only_in_one": only_in_one,
        "only_in_other": only_in_other,
        "raw": found.raw,
        "kappa": found.kappa,
        "win_rate": {
            "one": win_rate(prompt_means(first, prompts)),
            "other": win_rate(prompt_means(second, prompts)),
        },
        "table": {row: {column: _count(first, second, row, column) for column in VALUES} for row in VALUES},
    }


def _match(
    one: Sequence[JudgedPair], other: Sequence[JudgedPair]
) -> tuple[list[tuple[JudgedPair, JudgedPair]], int, int]:
    """Pairs in both, and how many are in one of them alone."""
    sides: dict[tuple[str, str, str], tuple[list[JudgedPair], list[JudgedPair]]] = defaultdict(lambda: ([], []))
    for side, pairs in enumerate((one, other)):
        for pair in pairs:
            sides[pair.pair.prompt, pair.pair.a, pair.pair.b][side].append(pair)
    # Where one side has more of a pair, the rest has no partner.
    matched = [couple for both in sides.values() for couple in zip(*both, strict=False)]
    return matched, len(one) - len(matched), len(other) - len(matched)


def _count(first: np.ndarray, second: np.ndarray, row: Outcome, column: Outcome) -> int:
    return int(((first == VALUES[row]) & (second == VALUES[column])).sum())


def as_agreement_table(compared: dict[str, Any]) -> Table:
    """Pairs by the outcome that each judge gave A."""
    table = Table(title="outcomes of A, in pairs", title_justify="left")
    table.add_column("the first judge's, down; the second's, across")
    for outcome in VALUES:
        table.add_column(outcome, justify="right")
    for outcome, row in compared["table"].items():
        table.add_row(outcome, *(str(count) for count in row.values()))
    return table


def agreement_sentences(compared: dict[str, Any]) -> list[str]:
    """What the agreement says in words."""
    kappa = compared["kappa"]
    chance = (
        "Cohen's kappa is not defined, since both give the same verdict everywhere"
        if kappa is None
        else f"Cohen's kappa {kappa:.2f}, where 0 is chance and 1 full agreement"
    )
    rates = compared["win_rate"]
    found = [
        f"The two judges agree on {100 * compared['raw']:.1f} % of {compared['pairs']} pairs ({chance}).",
        f"On these pairs A wins {100 * rates['one']:.1f} % by the first judge and {100 * rates['other']:.1f} % by the "
        "second.",
    ]
    alone = compared["only_in_one"], compared["only_in_other"]
    if any(alone):
        found.append(f"Left out, without a partner: {alone[0]} pairs of the first judge and {alone[1]} of the second.")
    if compared["undecided"]:
        found.append(f"Left out, without an outcome by one of the judges: {compared['undecided']}.")
    return found
