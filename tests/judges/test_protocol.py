"""Both orders, each question once, nothing lost."""

import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges.small import SmallJudge, make_pairs
from klqlit.judges.base import JudgeStopped
from klqlit.judges.cache import JudgmentCache
from klqlit.judges.protocol import JudgingInterrupted, fair_order, judge_pairs, missing_questions
from klqlit.judges.records import Pair


@pytest.fixture
def cache(tmp_path):
    with JudgmentCache(tmp_path / "cache.sqlite") as cache:
        yield cache


def test_both_orders_are_asked_and_read_from_side_a():
    judge = SmallJudge()
    won, lost = judge_pairs(judge, make_pairs(2), cache=None)
    assert set(judge.asked) == {
        ("What is 0?", "xxx", "yy"),
        ("What is 0?", "yy", "xxx"),
        ("What is 1?", "x", "yy"),
        ("What is 1?", "yy", "x"),
    }
    assert (won.a_first, won.a_second, won.outcome, won.both_orders) == ("win", "win", "win", True)
    assert (lost.a_first, lost.a_second, lost.outcome) == ("loss", "loss", "loss")
    assert won.answers == {"a_first": "I say first", "a_second": "I say second"}


def test_a_judge_that_looks_at_the_place_only_gives_ties():
    (first,) = judge_pairs(SmallJudge(lambda question: "first"), make_pairs(1), cache=None)
    assert (first.a_first, first.a_second, first.outcome, first.inconsistent) == ("win", "loss", "tie", True)


def test_the_order_that_the_judge_cannot_see_is_asked_once():
    judge = SmallJudge(sees_order=False)
    judged = judge_pairs(judge, make_pairs(2), cache=None)
    assert judge.asked.total() == 2
    assert [(pair.a_first, pair.a_second, pair.both_orders) for pair in judged] == [
        ("win", "win", False),
        ("loss", "loss", False),
    ]
    assert not any(pair.shows_order for pair in judged)
    assert all(pair.shows_order for pair in judge_pairs(SmallJudge(), make_pairs(2), cache=None, both_orders=False))


def test_one_order_has_no_favourite_and_does_not_depend_on_the_sides(cache):
    pairs = make_pairs(400)
    judge = SmallJudge()
    judged = judge_pairs(judge, pairs, cache=cache, both_orders=False)
    assert judge.asked.total() == 400
    shown_first = sum(pair.a_first is not None for pair in judged)
    assert all((pair.a_first is None) != (pair.a_second is None) for pair in judged)
    # Within four standard deviations of a fair coin.
    assert 160 <= shown_first <= 240
    assert [pair.outcome for pair in judged] == ["win", "loss"] * 200
    swapped = [replace(pair, a=pair.b, b=pair.a) for pair in pairs]
    assert [pair.outcome for pair in judge_pairs(judge, swapped, cache=cache, both_orders=False)] == [
        "loss",
        "win",
    ] * 200
    assert judge.asked.total() == 400


def test_equal_texts_are_a_tie_and_nobody_is_asked():
    judge = SmallJudge(lambda question: "first")
    same = [Pair(id="1", prompt="Why?", a="So.", b="So."), Pair(id="2", prompt="How?", a="", b="", b_ended=False)]
    assert [pair.outcome for pair in judge_pairs(judge, same, cache=None)] == ["tie", "tie"]
    assert not judge.asked
    one_order = judge_pairs(judge, same, cache=None, both_orders=False)
    assert all((pair.a_first is None) != (pair.a_second is None) for pair in one_order)


def test_equal_questions_are_asked_once_and_count_for_each_pair():
    pair, judge = make_pairs(1)[0], SmallJudge()
    judged = judge_pairs(judge, [pair, pair, replace(pair, a=pair.b, b=pair.a)], cache=None)
    assert set(judge.asked.values()) == {1}
    assert judge.asked.total() == 2
    assert [pair.outcome for pair in judged] == ["win", "win", "loss"]


def test_unreadable_answers_are_counted_and_not_guessed():
    judge = SmallJudge(lambda question: "unreadable" if question.first == "yy" else "first")
    (judged,) = judge_pairs(judge, make_pairs(1), cache=None)
    assert (judged.a_first, judged.a_second, judged.outcome, judged.unreadable) == ("win", None, None, 1)
    assert judged.answers["a_second"] == "I say unreadable"


def test_failed_questions_are_counted_and_asked_again_later(cache):
    pairs = make_pairs(3)
    judged = judge_pairs(SmallJudge(fails=["What is 1?"]), pairs, cache=cache)
    assert [(pair.outcome, pair.failed) for pair in judged] == [("win", 0), (None, 2), ("win", 0)]
    judge = SmallJudge()
    assert [pair.outcome for pair in judge_pairs(judge, pairs, cache=cache)] == ["win", "loss", "win"]
    assert judge.asked.total() == 2


def test_what_is_known_is_not_asked_again_and_gives_the_same(cache):
    pairs = make_pairs(5)
    before = judge_pairs(SmallJudge(), pairs, cache=cache)
    judge = SmallJudge()
    assert judge_pairs(judge, pairs, cache=cache) == before
    assert not judge.asked
    judge_pairs(SmallJudge(name="another"), pairs, cache=cache)
    assert len(cache) == 20


def test_what_came_before_the_judge_gave_up_is_kept(cache):
    pairs = make_pairs(5)
    with pytest.raises(JudgeStopped, match=r"tired \(7 of 10 judgments kept; run again to go on\)"):
        judge_pairs(SmallJudge(stops_after=7), pairs, cache=cache)
    judge = SmallJudge()
    assert judge_pairs(judge, pairs, cache=cache) == judge_pairs(SmallJudge(), pairs, cache=None)
    assert judge.asked.total() == 3


def test_stopping_from_outside_keeps_what_came(cache):
    stopping = threading.Event()

    def stop_at_the_third(question):
        if judge.asked.total() == 3:
            stopping.set()
        return "tie"

    judge = SmallJudge(stop_at_the_third)
    with pytest.raises(JudgingInterrupted, match="3 of 8 judgments kept; run again to go on"):
        judge_pairs(judge, make_pairs(4), cache=cache, stopping=stopping)
    assert len(cache) == 3


def test_stopping_after_the_last_judgment_changes_nothing():
    stopping = threading.Event()

    def stop(question):
        stopping.set()
        return "tie"

    judge = SmallJudge(stop)
    (judged,) = judge_pairs(judge, make_pairs(1), cache=None, both_orders=False, stopping=stopping)
    assert judged.outcome == "tie"


def test_questions_are_missing_until_they_are_judged(cache):
    pairs = make_pairs(4)
    assert len(missing_questions(SmallJudge(), pairs, cache=cache)) == 8
    judge_pairs(SmallJudge(), pairs[:3], cache=cache)
    assert {question.prompt for question in missing_questions(SmallJudge(), pairs, cache=cache)} == {"What is 3?"}
    assert len(missing_questions(SmallJudge(), pairs, cache=cache)) == 2
    assert len(missing_questions(SmallJudge(), pairs, cache=cache, both_orders=False)) == 1


def test_the_state_is_printed(capsys):
    judge = SmallJudge(
        lambda question: "unreadable" if question.prompt == "What is 3?" else "first", fails=["What is 2?"]
    )
    judge_pairs(judge, make_pairs(4), cache=None, progress=True)
    assert capsys.readouterr().out == "judged 6/8  A wins 50.0 %, 2 unreadable, 2 failed\n"
    judge_pairs(judge, make_pairs(4), cache=None)
    assert capsys.readouterr().out == ""


texts = st.text(max_size=3)


@given(st.text(min_size=1, max_size=3), texts, texts)
def test_swapping_the_sides_swaps_the_fair_order(prompt, a, b):
    pair = Pair(id="1", prompt=prompt, a=a, b=b)
    swapped = fair_order(replace(pair, a=b, b=a))
    assert (swapped == fair_order(pair)) == (a == b)


@given(st.lists(st.tuples(texts, texts), max_size=5))
def test_swapping_the_sides_turns_every_outcome_round(sides):
    pairs = [Pair(id=str(i), prompt="?", a=a, b=b) for i, (a, b) in enumerate(sides)]
    turned = {"win": "loss", "loss": "win", "tie": "tie", None: None}
    judged = judge_pairs(SmallJudge(), pairs, cache=None)
    swapped = judge_pairs(SmallJudge(), [replace(pair, a=pair.b, b=pair.a) for pair in pairs], cache=None)
    assert [turned[pair.outcome] for pair in judged] == [pair.outcome for pair in swapped]


def test_what_is_under_way_has_its_grace_and_no_more(tmp_path):
    """The third answer comes after a minute: two are kept, and the caller has the thread back."""
    stopping, released = threading.Event(), threading.Event()

    def slow(question):
        if question.prompt == "What is 0?":
            stopping.set()
            released.wait(60)
        return "tie"

    judge, start = SmallJudge(slow, sees_order=False), time.monotonic()
    with JudgmentCache(tmp_path / "c.sqlite") as cache:
        with pytest.raises(JudgingInterrupted, match="2 of 3 judgments kept"):
            judge_pairs(judge, make_pairs(3), cache=cache, stopping=stopping, grace=0.3)
        assert 0.3 <= time.monotonic() - start < 20
        released.set()
        again = judge_pairs(SmallJudge(sees_order=False), make_pairs(3), cache=cache)
    assert [pair.a_first for pair in again] == ["win", "tie", "tie"]


def test_a_grace_changes_nothing_where_nothing_stops():
    pairs = make_pairs(4)
    judged = judge_pairs(SmallJudge(), pairs, cache=None, stopping=threading.Event(), grace=0.0)
    assert judged == judge_pairs(SmallJudge(), pairs, cache=None)
    with pytest.raises(JudgeStopped, match="tired"):
        judge_pairs(SmallJudge(stops_after=1), pairs, cache=None, stopping=threading.Event(), grace=0.0)
