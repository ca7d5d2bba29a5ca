"""Agreement of two judges: which pairs are compared, and what is said of them."""

import pytest
from rich.console import Console

from klqlit.judges.records import JudgedPair, Pair
from klqlit.judges.two_judges import agreement_sentences, as_agreement_table, compare_judges


def judged(prompt, outcome, a="x"):
    pair = Pair(id=prompt, prompt=prompt, a=a, b="y")
    return JudgedPair(pair=pair, a_first=outcome, a_second=outcome)


def test_agreement_by_hand():
    """Of w-w, w-t, l-l, l-l: 3/4 agree, by chance 1/2 * 1/4 + 1/2 * 1/2 = 3/8 would, so kappa is 3/5."""
    one = [judged("p", "win"), judged("q", "win"), judged("r", "loss"), judged("s", "loss"), judged("t", "win")]
    other = [judged("s", "loss"), judged("r", "loss"), judged("q", "tie"), judged("p", "win"), judged("u", "win")]
    found = compare_judges(one, other)
    assert found["raw"] == 0.75
    assert found["kappa"] == pytest.approx(0.6)
    assert (found["pairs"], found["undecided"], found["only_in_one"], found["only_in_other"]) == (4, 0, 1, 1)
    assert found["win_rate"] == {"one": 0.5, "other": (1 + 0.5) / 4}
    assert found["table"] == {
        "win": {"win": 1, "tie": 1, "loss": 0},
        "tie": {"win": 0, "tie": 0, "loss": 0},
        "loss": {"win": 0, "tie": 0, "loss": 2},
    }
    assert agreement_sentences(found) == [
        "The two judges agree on 75.0 % of 4 pairs (Cohen's kappa 0.60, where 0 is chance and 1 full agreement).",
        "On these pairs A wins 50.0 % by the first judge and 37.5 % by the second.",
        "Left out, without a partner: 1 pairs of the first judge and 1 of the second.",
    ]
    console = Console(width=100)
    with console.capture() as captured:
        console.print(as_agreement_table(found))
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in captured.get().splitlines() if "│" in line]
    assert cells == [["win", "1", "1", "0"], ["tie", "0", "0", "0"], ["loss", "0", "0", "2"]]


def test_pairs_are_the_same_where_both_completions_are():
    found = compare_judges([judged("p", "win"), judged("p", "loss", a="z")], [judged("p", "win", a="z")])
    assert (found["pairs"], found["raw"], found["only_in_one"]) == (1, 0.0, 1)


def test_repeated_pairs_are_compared_in_turn():
    one, other = ([judged("p", outcome) for outcome in side] for side in (("win", "loss", "tie"), ("win", "tie")))
    found = compare_judges(one, other)
    assert (found["pairs"], found["raw"], found["only_in_one"]) == (2, 0.5, 1)


def test_pairs_without_outcome_are_left_out_and_counted():
    found = compare_judges([judged("p", "win"), judged("q", None)], [judged("p", "win"), judged("q", "loss")])
    assert (found["pairs"], found["undecided"], found["raw"], found["kappa"]) == (1, 1, 1.0, None)
    assert "Left out, without an outcome by one of the judges: 1." in agreement_sentences(found)
    assert "kappa is not defined" in agreement_sentences(found)[0]


def test_judges_of_different_pairs_cannot_be_compared():
    with pytest.raises(ValueError, match=r"no pair in common .* \(0 pairs with the same prompt, A and B are in both"):
        compare_judges([judged("p", "win")], [judged("q", "win")])
