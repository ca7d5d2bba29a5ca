"""Summaries of judged pairs: the numbers, and what the sentences say of them."""

import json
from math import log, sqrt
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from klqlit.judges.records import JudgedPair, Outcome, Pair
from klqlit.judges.summary import as_table, characters, sentences, summarise, words

MIRRORED: dict[Outcome | None, Outcome | None] = {"win": "loss", "tie": "tie", "loss": "win", None: None}


def judged(number, first, second=None, *, a="x", b="y", both=True, **counts):
    """A judged pair of prompt `number`."""
    pair = Pair(id=str(number), prompt=f"prompt {number}", a=a, b=b)
    return JudgedPair(pair=pair, a_first=first, a_second=second, both_orders=both, **counts)


def text_of(summary, a="KLQ", b="PPO"):
    """Table and sentences as one reads them."""
    console = Console(width=100)
    with console.capture() as captured:
        console.print(as_table(summary, a, b))
    return captured.get() + "\n".join(sentences(summary, a, b))


# Two systems of which A is better, a judge that likes the first place and long responses ------------------------------


def biased_verdicts(both_orders):
    """A wins 72 % of 750 pairs where shown first and 56 % where shown second; two of three winners are the longer."""
    pairs = []
    for order, wins in (("first", 540), ("second", 420)):
        for i in range(750):
            outcome = "win" if i < wins else "loss"
            a_longer = (i % 3 > 0) == (outcome == "win")
            texts = {"a": "w " * (25 if a_longer else 20), "b": "w " * (20 if a_longer else 25)}
            number = i if both_orders else (order, i)
            pairs.append((number, order, outcome, texts))
    if not both_orders:
        return [
            judged(number, *((outcome, None) if order == "first" else (None, outcome)), both=False, **texts)
            for number, order, outcome, texts in pairs
        ]
    return [
        judged(number, first, second, **texts)
        for (number, _, first, texts), (_, _, second, _) in zip(pairs[:750], pairs[750:], strict=True)
    ]


def test_a_judge_who_likes_first_places_and_long_responses_is_found_out():
    """Odds of 32/9 where A is longer and 8/9 where it is shorter make 16/9 in between: 64 % at equal length, too."""
    summary = summarise(biased_verdicts(both_orders=False))
    statistics = summary["statistics"]
    assert statistics["win_rate"]["rate"] == pytest.approx(0.64)
    assert statistics["by_position"] == {"first": pytest.approx(0.72), "second": pytest.approx(0.56)}
    assert statistics["by_length"] == {
        "a_longer": {"rate": pytest.approx(640 / 820), "pairs": 820},
        "b_longer": {"rate": pytest.approx(320 / 680), "pairs": 680},
        "equal": {"rate": None, "pairs": 0},
    }
    assert statistics["longer_wins"] == pytest.approx(2 / 3)
    assert statistics["length_controlled"]["rate"] == pytest.approx(16 / 25)
    assert statistics["inconsistent_rate"] is None
    text = text_of(summary)
    assert "KLQ wins 64.0 % (95 % interval 61.6 to 66.4 %) of 1500 prompts against PPO: KLQ is ahead." in text
    assert "KLQ wins 72.0 % of 750 prompts where shown first and 56.0 % of 750 where shown second" in text
    assert "the judge prefers what it sees first" in text
    assert "The longer completion wins 66.7 %." in text
    assert "At equal length KLQ would win 64.0 %" in text
    assert "give both rates" not in text
    assert "All pairs were judged in one order only" in text


def test_both_orders_show_how_often_the_place_decides():
    """Where A wins in both orders it wins; the 16 % that it wins only when shown first are ties."""
    summary = summarise(biased_verdicts(both_orders=True))
    statistics = summary["statistics"]
    assert statistics["win_rate"]["rate"] == pytest.approx(0.64)
    assert (statistics["wins"], statistics["ties"], statistics["losses"]) == (420, 120, 210)
    assert statistics["inconsistent_rate"] == pytest.approx(0.16)
    assert statistics["by_position"] == {"first": pytest.approx(0.72), "second": pytest.approx(0.56)}
    assert summary["counts"] | {"inconsistent": 120, "both_orders": 750, "judged": 750} == summary["counts"]
    assert "one order only" not in text_of(summary)


def test_a_side_that_wins_by_length_alone_is_found_out():
    """A wins 60 of 80 where longer and 5 of 20 where shorter: odds 3 and 1/3, even at equal length."""
    pairs = [judged(i, "win" if i < 60 else "loss", both=False, a="w w", b="w") for i in range(80)]
    pairs += [judged(80 + i, "win" if i < 5 else "loss", both=False, a="w", b="w w") for i in range(20)]
    summary = summarise(pairs)
    assert summary["statistics"]["win_rate"]["rate"] == 0.65
    assert summary["statistics"]["length_controlled"]["rate"] == pytest.approx(0.5)
    assert "At equal length KLQ would win 50.0 %" in text_of(summary)
    assert "15.0 points less than as they are: give both rates" in text_of(summary)


def test_a_lead_that_length_turns_around_is_told_even_where_it_is_small():
    """A wins 44 of 80 where longer and 8 of 20 where shorter: odds of 11/9 and 2/3, sqrt(22/27) at equal length."""
    pairs = [judged(i, "win" if i < 44 else "loss", both=False, a="w w", b="w") for i in range(80)]
    pairs += [judged(80 + i, "win" if i < 8 else "loss", both=False, a="w", b="w w") for i in range(20)]
    summary = summarise(pairs)
    odds = sqrt(22 / 27)
    assert summary["statistics"]["win_rate"]["rate"] == 0.52
    assert summary["statistics"]["length_controlled"]["rate"] == pytest.approx(odds / (1 + odds))
    assert "4.6 points less than as they are: give both rates" in text_of(summary)


# Numbers -------------------------------------------------------------------------------------------------------------


def test_counts_by_hand():
    pairs = [
        judged(1, "win", "win", a="", b="y"),
        judged(1, "win", "loss", b=" \n"),
        judged(2, "tie", None, unreadable=1),
        judged(3, None, None, failed=2),
        judged(4, None, "loss", both=False, a="same", b="same"),
    ]
    assert summarise(pairs)["counts"] == {
        "pairs": 5,
        "prompts": 4,
        "judged": 3,
        "judged_prompts": 2,
        "prompts_a_first": 2,
        "prompts_a_second": 1,
        "both_orders": 2,
        "one_order": 0,
        "unreadable": 1,
        "failed": 2,
        "inconsistent": 1,
        "empty_a": 1,
        "empty_b": 1,
        "identical": 1,
    }


def test_statistics_by_hand():
    """Prompt 1 wins 3/4 of two pairs, prompt 2 loses, prompt 3 has no outcome but one verdict."""
    pairs = [
        judged(1, "win", "win", a="w w"),
        judged(1, "win", "loss"),
        judged(2, "loss", "loss", a="long-word", b="w w"),
        judged(3, None, "win", unreadable=1),
    ]
    statistics = summarise(pairs)["statistics"]
    assert statistics["win_rate"]["rate"] == (0.75 + 0) / 2
    assert (statistics["wins"], statistics["ties"], statistics["losses"]) == (1, 1, 1)
    # One prompt won, one lost.
    assert statistics["sign_test"] == 1
    assert statistics["inconsistent_rate"] == 1 / 3
    assert statistics["by_position"] == {"first": (1 + 0) / 2, "second": (0.5 + 0 + 1) / 3}
    assert statistics["by_length"] == {
        "a_longer": {"rate": 1.0, "pairs": 1},
        "b_longer": {"rate": 0.0, "pairs": 1},
        "equal": {"rate": 0.5, "pairs": 1},
    }
    assert statistics["longer_wins"] == 1.0
    by_characters = summarise(pairs, length=characters)["statistics"]["by_length"]
    assert by_characters["a_longer"] == {"rate": (1 + 0) / 2, "pairs": 2}


def test_identical_texts_say_nothing_of_the_order():
    """Nobody was asked about three of the five pairs: one verdict of two changed."""
    asked = [judged(1, "win", "loss"), judged(2, "win", "win")]
    same = [judged(3 + i, "tie", "tie", a="same", b="same") for i in range(3)]
    statistics = summarise([*asked, *same])["statistics"]
    assert statistics["inconsistent_rate"] == 1 / 2
    assert statistics["by_position"] == {"first": 1.0, "second": 1 / 2}
    assert statistics["win_rate"]["rate"] == pytest.approx((0.5 + 1 + 3 * 0.5) / 5)


def test_a_judge_that_does_not_see_the_order_says_nothing_of_it():
    summary = summarise([judged(i, "win", "win", both=False) for i in range(12)])
    assert summary["statistics"]["inconsistent_rate"] is summary["statistics"]["by_position"] is None
    assert summary["statistics"]["win_rate"]["rate"] == 1
    found = " ".join(sentences(summary, "A", "B"))
    assert "order" not in found
    assert "shown" not in found.replace("neither is shown", "")
    rows = [line for line in text_of(summary).splitlines() if "shown" in line or "order" in line]
    assert [row.split("│")[2].strip() for row in rows[:3]] == ["-", "-", "-"]


def test_the_sign_test_counts_prompts():
    """Three prompts of five pairs each are three observations: p = 2/8."""
    pairs = [judged(number, "win", "win") for number in (1, 2, 3) for _ in range(5)]
    assert summarise(pairs)["statistics"]["sign_test"] == 0.25


def test_lengths():
    assert words(" two\n words ") == 2
    assert words("") == 0
    assert characters("ab c") == 4


outcomes = st.sampled_from(["win", "tie", "loss", None])
orders = st.one_of(
    st.tuples(outcomes, outcomes, st.just(True)),
    st.tuples(outcomes, st.none(), st.just(False)),
    st.tuples(st.none(), outcomes, st.just(False)),
)
pairs_of_any_kind = st.lists(st.tuples(st.integers(0, 15), orders, st.sampled_from(["", "w", "w w w"])), max_size=60)


@settings(deadline=None)
@given(pairs_of_any_kind)
def test_swapped_sides_give_the_mirror_image_and_json(drawn):
    """Of whatever pairs, with no number that JSON lacks, and something to read."""
    pairs = [judged(n, first, second, both=both, a=a) for n, (first, second, both), a in drawn]
    mirrored = [
        judged(n, MIRRORED[second], MIRRORED[first], both=both, a="y", b=a) for n, (first, second, both), a in drawn
    ]
    one, other = (summarise(side, draws=200) for side in (pairs, mirrored))
    json.dumps(one, allow_nan=False)
    assert "None" not in text_of(one).replace("None of", "")
    assert "nan" not in text_of(one)
    statistics, mirror = one["statistics"], other["statistics"]
    assert (statistics["wins"], statistics["losses"]) == (mirror["losses"], mirror["wins"])
    assert (statistics["win_rate"] is None) == (mirror["win_rate"] is None)
    for key in ("win_rate", "length_controlled"):
        if statistics[key] is not None:
            assert statistics[key] == pytest.approx(
                {"rate": 1 - mirror[key]["rate"], "low": 1 - mirror[key]["high"], "high": 1 - mirror[key]["low"]}
            )
    if statistics["by_position"]:
        assert statistics["by_position"]["first"] == pytest.approx(1 - mirror["by_position"]["second"])
    for key in ("inconsistent_rate", "longer_wins", "sign_test"):
        assert statistics[key] == pytest.approx(mirror[key])


# Sentences -----------------------------------------------------------------------------------------------------------


def test_no_pairs_at_all():
    assert sentences(summarise([]), "A", "B") == ["None of 0 pairs has an outcome: there is no win rate."]
    assert summarise([])["statistics"]["win_rate"] is None


def test_unreadable_pairs_are_counted_and_left_out():
    pairs = [*(judged(i, "win", "win") for i in range(6)), *(judged(9 + i, None, None, unreadable=2) for i in range(2))]
    assert "2 of 8 pairs have no outcome and are left out (4 unreadable answers, 0 failed requests)." in sentences(
        summarise(pairs), "A", "B"
    )
    only = sentences(summarise(pairs[6:]), "A", "B")
    assert only[0] == "None of 2 pairs has an outcome: there is no win rate."
    assert len(only) == 2


def test_one_prompt_says_next_to_nothing():
    found = sentences(summarise([judged(1, "win", "win")]), "A", "B")
    assert found[0] == (
        "A wins 100.0 % (95 % interval 2.5 to 100.0 %) of 1 prompt against B: "
        "the interval holds 50 %, so neither is shown to be ahead."
    )
    assert "All outcomes are wins: the interval is what so few prompts leave open, not a spread seen." in found
    assert "Fewer than 100 prompts: expect the rate to move by many points with other prompts." in found
    assert "A length-controlled win rate cannot be estimated: it takes at least 10 prompts, and there are 1." in found


@pytest.mark.parametrize(
    ("outcome", "verdict"), [("win", "A is ahead."), ("loss", "B is ahead."), ("tie", "holds 50 %")]
)
def test_all_prompts_alike(outcome, verdict):
    found = " ".join(sentences(summarise([judged(i, outcome, outcome) for i in range(120)]), "A", "B"))
    assert verdict in found
    assert "cannot be estimated: all pairs have the same outcome" in found
    assert "Fewer than 100 prompts" not in found


def test_a_judge_who_changes_its_mind_is_named():
    pairs = [judged(i, "win", "loss" if i < 30 else "win") for i in range(100)]
    found = " ".join(sentences(summarise(pairs), "A", "B"))
    assert "Fewer than 100 prompts" not in found
    assert "The verdict changed with the order in 30.0 % of 100 pairs, which count as ties" in found
    assert "A wins 100.0 % of 100 prompts where shown first and 70.0 % of 100 where shown second: the judge" in found


@pytest.mark.parametrize(
    ("prompts", "every", "named"),
    [
        (20, 5, False),  # 20 points are less than sqrt(2 / 20) = 0.32
        (400, 5, True),  # and more than sqrt(2 / 400) = 0.07
        (1600, 16, True),  # 6.25 points are more than sqrt(2 / 1600) = 0.035, and worth a word
        (3200, 25, False),  # 4 points are no chance either, but too few to matter
    ],
)
def test_a_taste_for_a_place_is_named_where_it_is_large_and_no_chance(prompts, every, named):
    pairs = [judged(i, "win", "loss" if i % every == 0 else "win") for i in range(prompts)]
    found = " ".join(sentences(summarise(pairs), "A", "B"))
    rate = f"{100 - 100 / every:.1f}"
    assert f"A wins 100.0 % of {prompts} prompts where shown first and {rate} % of {prompts} where" in found
    assert ("the judge prefers what it sees first" in found) == named


def test_an_interval_that_begins_at_one_half_shows_nothing():
    """Of two ties and a win, 8 in 27 resamples are ties alone."""
    pairs = [judged(1, "win", "win"), judged(2, "tie", "tie"), judged(3, "tie", "tie")]
    summary = summarise(pairs)
    assert summary["statistics"]["win_rate"]["low"] == 0.5
    assert "neither is shown to be ahead" in sentences(summary, "A", "B")[0]


@pytest.mark.parametrize(("wins", "verdict"), [(4, "neither is shown to be ahead"), (6, "A is ahead")])
def test_an_interval_that_is_too_narrow_shows_nothing_where_the_sign_test_disagrees(wins, verdict):
    """Resamples of wins and a tie hold no loss, however few they are; 4 of 4 come of a coin one time in eight."""
    summary = summarise([judged(i, "win", "win") for i in range(wins)] + [judged(9, "tie", "tie")])
    assert summary["statistics"]["win_rate"]["low"] > 0.5
    assert summary["statistics"]["sign_test"] == pytest.approx(2 * 0.5**wins)
    assert verdict in sentences(summary, "A", "B")[0]


def test_equal_length_beyond_what_was_seen_is_pointed_out():
    rng = np.random.default_rng(0)
    pairs = [
        judged(i, "win" if rng.random() < 0.6 else "loss", both=False, a="w " * (3 + i % 7), b="w") for i in range(120)
    ]
    found = " ".join(sentences(summarise(pairs), "KLQ", "PPO"))
    assert "KLQ's completion is never the shorter one: equal length is beyond what was seen." in found


def test_names_are_no_markup():
    table = text_of(summarise([judged(1, "win", "win")]), "[red]a[/red]", "[b")
    assert "[red]a[/red] against [b" in table


def test_some_pairs_in_one_order_are_told():
    pairs = [*(judged(i, "win", "loss") for i in range(10)), *(judged(10 + i, "win", both=False) for i in range(3))]
    assert any(
        line.startswith("3 of 13 pairs were judged in one order only") for line in sentences(summarise(pairs), "A", "B")
    )


@pytest.mark.slow
def test_ten_thousand_pairs_take_less_than_two_seconds():
    rng = np.random.default_rng(0)
    kinds = rng.choice(["win", "tie", "loss"], size=(2, 10_000), p=[0.5, 0.1, 0.4])
    sizes = rng.integers(1, 60, size=(2, 10_000))
    pairs = [
        judged(i, str(kinds[0, i]), str(kinds[1, i]), a="w " * sizes[0, i], b="w " * sizes[1, i]) for i in range(10_000)
    ]
    start = process_time()
    summary = summarise(pairs, draws=10_000)
    assert process_time() - start < 2
    low, high = (summary["statistics"]["win_rate"][end] for end in ("low", "high"))
    # Two of the same verdict, less two of the other: 1/2 + (0.5^2 - 0.4^2)/2.
    assert low < 0.545 < high
    assert log(high / low) < 0.04
