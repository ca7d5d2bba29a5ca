"""Verdicts from files: what columns and values mean, which rows belong together, and what is wrong with a file."""

import csv
import gzip
import json
import re

import pytest

from klqlit.judges.records import JudgedPair, Pair
from klqlit.judges.verdict_files import (
    VerdictTable,
    is_judgments,
    read_judgments,
    read_rows_of_verdicts,
)


def rows(*verdicts, **more):
    """Rows of one prompt each."""
    return [{"prompt": f"p{i}", "a": f"a{i}", "b": f"b{i}", "verdict": v, **more} for i, v in enumerate(verdicts)]


def outcomes(judged):
    return [(pair.a_first, pair.a_second, pair.outcome) for pair in judged]


# What verdicts mean --------------------------------------------------------------------------------------------------


def test_the_six_words_mean_themselves():
    judged = VerdictTable().read(rows("win", "tie", "loss", "first", "second", "unreadable"), "f")
    assert [pair.outcome for pair in judged] == ["win", "tie", "loss", "win", "loss", None]
    assert [pair.unreadable for pair in judged] == [0, 0, 0, 0, 0, 1]
    assert [pair.pair.a for pair in judged] == ["a0", "a1", "a2", "a3", "a4", "a5"]
    assert not any(pair.both_orders for pair in judged)
    assert len({pair.pair.id for pair in judged}) == 6


@pytest.mark.parametrize(("swapped", "expected"), [("False", ("win", "loss")), ("True", ("loss", "win"))])
def test_places_are_turned_into_sides_and_sides_are_not(swapped, expected):
    """The response shown first is A's unless they are swapped."""
    table = VerdictTable(swapped="shuffled", meanings={"A": "first", "B": "second"})
    assert [pair.outcome for pair in table.read(rows("A", "B", shuffled=swapped), "f")] == list(expected)
    places = [
        pair.a_second if swapped == "True" else pair.a_first for pair in table.read(rows("A", shuffled=swapped), "f")
    ]
    assert places == [expected[0]]
    sides = table.read(rows("win", "loss", shuffled=swapped), "f")
    assert [pair.outcome for pair in sides] == ["win", "loss"]


@pytest.mark.parametrize("swapped", [True, 1, "1", "true", "True", "yes", 1.0])
def test_ways_to_say_that_a_was_second(swapped):
    (pair,) = VerdictTable(swapped="s").read(rows("win", s=swapped), "f")
    assert (pair.a_first, pair.a_second) == (None, "win")


@pytest.mark.parametrize("swapped", [False, 0, "0", "false", "False", "no", 0.0])
def test_ways_to_say_that_a_was_first(swapped):
    (pair,) = VerdictTable(swapped="s").read(rows("win", s=swapped), "f")
    assert (pair.a_first, pair.a_second) == ("win", None)


def test_values_of_json_are_compared_as_text():
    table = VerdictTable(meanings={"1": "win", "2": "loss", "1.5": "tie", "true": "win", "": "unreadable"})
    judged = table.read(rows(1, 2.0, 1.5, True, None, " "), "f")
    assert [pair.outcome for pair in judged] == ["win", "loss", "tie", "win", None, None]


def test_public_tables_can_be_read():
    """Verdicts that name a column, with a flag for the order; and those of an arena, with two kinds of ties."""
    tldr = [
        {"query": "q", "ours": "x", "human": "y", "preferred": "ours", "shuffled_index": "1"},
        {"query": "r", "ours": "x", "human": "y", "preferred": "human", "shuffled_index": "0"},
    ]
    table = VerdictTable(
        prompt="query",
        a="ours",
        b="human",
        verdict="preferred",
        swapped="shuffled_index",
        meanings={"ours": "win", "human": "loss"},
    )
    assert outcomes(table.read(tldr, "f")) == [(None, "win", "win"), ("loss", None, "loss")]
    arena = [
        {"prompt": f"p{i}", "response_a": "x", "response_b": "y", "winner": winner}
        for i, winner in enumerate(("model_a", "model_b", "tie", "tie (bothbad)"))
    ]
    table = VerdictTable(
        a="response_a",
        b="response_b",
        verdict="winner",
        meanings={"model_a": "win", "model_b": "loss", "tie (bothbad)": "tie"},
    )
    assert [pair.outcome for pair in table.read(arena, "f")] == ["win", "loss", "tie", "tie"]


# Which rows belong together ------------------------------------------------------------------------------------------


def row(verdict, swapped, prompt="p", a="x", b="y"):
    return {"prompt": prompt, "a": a, "b": b, "verdict": verdict, "s": swapped}


def test_both_orders_of_a_pair_are_one_pair():
    """Wherever the rows stand; other completions of the prompt are another pair of the same prompt."""
    table = VerdictTable(swapped="s")
    judged = table.read(
        [row("win", 0), row("loss", 0, a="z"), row("loss", 1), row("loss", 1, a="z"), row("tie", 0, prompt="q")], "f"
    )
    assert outcomes(judged) == [("win", "loss", "tie"), ("loss", "loss", "loss"), ("tie", None, "tie")]
    assert [pair.both_orders for pair in judged] == [True, True, False]
    assert [pair.pair.id == judged[0].pair.id for pair in judged] == [True, True, False]


def test_an_unreadable_order_leaves_a_pair_without_outcome():
    (pair,) = VerdictTable(swapped="s").read([row("win", 0), row("unreadable", 1)], "f")
    assert (pair.a_first, pair.a_second, pair.outcome, pair.unreadable) == ("win", None, None, 1)


def test_repeated_judgments_stay_several_pairs():
    table = VerdictTable(swapped="s")
    judged = table.read([row("win", 0), row("loss", 0), row("win", 1)], "f")
    assert outcomes(judged) == [("win", "win", "win"), ("loss", None, "loss")]


# What is wrong -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "given", "message"),
    [
        (
            VerdictTable(verdict="verdit"),
            rows("win"),
            "f, row 1 has no column 'verdit'; it has 'prompt', 'a', 'b', 'verdict', of which 'verdict' comes nearest: "
            "name the right one with --verdict",
        ),
        (VerdictTable(prompt="q"), rows("win"), "has no column 'q'; it has 'prompt', 'a', 'b', 'verdict': name the"),
        (VerdictTable(a="x"), rows("win"), "name the right one with --a"),
        (VerdictTable(b="x"), rows("win"), "name the right one with --b"),
        (VerdictTable(swapped="x"), rows("win"), "name the right one with --swapped"),
        (VerdictTable(), [*rows("win"), {"prompt": "p"}], "f, row 2 has no column 'verdict'"),
        (
            VerdictTable(meanings={"A": "first"}),
            rows("A", "B", "A", "C", "B", "A"),
            "f: column 'verdict' holds 'A' (3 rows), 'B' (2 rows), 'C' (1 rows), of which 'B' has no meaning: say "
            "which values mean that A wins (--win), B wins (--loss), neither (--tie), no verdict (--unreadable), or "
            "name the better one's place (--first, --second)",
        ),
        (VerdictTable(), rows(None), "holds '' (1 rows)"),
        (VerdictTable(), rows(*range(20)), "and others, of which '0' has no meaning"),
        (
            VerdictTable(swapped="s"),
            rows("win", s="maybe"),
            "column 's' holds 'maybe'; it must hold one of true, 1",
        ),
        (
            VerdictTable(),
            rows("win", a=["x"]),
            "column 'a' holds ['x'] (list), not text: name another with --a",
        ),
    ],
)
def test_a_table_that_cannot_be_read_says_where_and_how(table, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        table.read(given, "f")


def test_files_of_all_kinds(tmp_path):
    given = rows("win", "loss")
    (tmp_path / "v.jsonl").write_text("\n".join(map(json.dumps, given)))
    with (tmp_path / "v.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, given[0])
        writer.writeheader()
        writer.writerows(given)
    for name in ("v.jsonl", "v.csv"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    for name in ("v.jsonl", "v.csv", "v.jsonl.gz", "v.csv.gz"):
        assert read_rows_of_verdicts(str(tmp_path / name)) == given


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ('{"prompt": "p"}\n{"prompt": \n', "v.jsonl, line 2, column"),
        ("[1]\n", "v.jsonl, line 1 is [1] (list)"),
    ],
)
def test_broken_files_are_named_with_the_line(content, message, tmp_path):
    (tmp_path / "v.jsonl").write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_rows_of_verdicts(str(tmp_path / "v.jsonl"))


def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("verdicts", "owner/verdicts", "v.csv"):
        with pytest.raises(ValueError, match=f"there is no file of verdicts '{name}': check the path"):
            read_rows_of_verdicts(name)


# This package's own --------------------------------------------------------------------------------------------------


def own(**changes):
    """A line of judgments.jsonl."""
    return {
        "id": "1f",
        "prompt": "p",
        "a": "x",
        "b": "y",
        "a_first": "win",
        "a_second": "loss",
        "outcome": "tie",
        "inconsistent": True,
        "unreadable": 0,
        "failed": 0,
        "answers": {},
    } | changes


def test_own_judgments_tell_whether_the_judge_saw_the_order():
    rows = [own(a_second="win", outcome="win", both_orders=seen) for seen in (True, False)]
    assert [pair.shows_order for pair in read_judgments(rows, "f")] == [True, False]
    with pytest.raises(ValueError, match="f, row 1: 'both_orders' holds 'no'; it must hold true or false"):
        read_judgments([own(both_orders="no")], "f")


def test_own_judgments_are_read_as_they_were():
    pair = Pair(id="1f", prompt="p", a="x", b="y")
    given = [
        own(),
        own(a_second=None, outcome="win"),
        own(a_second=None, outcome=None, unreadable=1),
        own(a_first=None, a_second=None, outcome=None, failed=2),
    ]
    assert is_judgments(given)
    assert not is_judgments(rows("win"))
    assert read_judgments(given, "f") == [
        JudgedPair(pair=pair, a_first="win", a_second="loss"),
        JudgedPair(pair=pair, a_first="win", a_second=None, both_orders=False),
        JudgedPair(pair=pair, a_first="win", a_second=None, unreadable=1),
        JudgedPair(pair=pair, a_first=None, a_second=None, failed=2),
    ]


def test_a_folder_of_a_comparison_is_its_judgments(tmp_path):
    (tmp_path / "judgments.jsonl").write_text(json.dumps(own()))
    assert read_rows_of_verdicts(str(tmp_path)) == [own()]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"no file of verdicts .*nothing/judgments\.jsonl"):
        read_rows_of_verdicts(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outcome": "win"}, "the outcome 'win' does not follow from a_first='win' and a_second='loss'"),
        ({"a_first": "first"}, "'a_first' holds 'first'; it must hold win, tie, loss or null"),
        ({"failed": "x"}, "'failed' holds 'x'; it must hold a number"),
        ({"prompt": 3}, "column 'prompt' holds 3 (int), not text"),
    ],
)
def test_changed_judgments_are_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(f"f, row 2: {message}")):
        read_judgments([own(), own(**changes)], "f")


def test_a_cut_row_is_refused():
    row = own()
    del row["failed"]
    with pytest.raises(ValueError, match="f, row 1 has no column 'failed'"):
        read_judgments([row], "f")
