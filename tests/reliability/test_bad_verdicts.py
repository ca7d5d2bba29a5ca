"""Malformed completions, judgments and tables of verdicts: what `judge` and `analyse` read."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klqlit.cli import main
from klqlit.judges.matching import read_completions
from klqlit.judges.verdict_files import VerdictTable, read_judgments, read_rows_of_verdicts
from reliability.mutations import spoiled
from reliability.refusals import assert_clear, bounded, fuzz, refusal

JUDGED = [
    {
        "id": f"i{i}",
        "prompt": f"p{i}",
        "a": f"a{i}",
        "b": f"b{i}",
        "a_first": first,
        "a_second": second,
        "outcome": outcome,
        "both_orders": True,
        "unreadable": 0,
        "failed": 0,
    }
    for i, (first, second, outcome) in enumerate(
        [("win", "win", "win"), ("win", "loss", "tie"), ("loss", "loss", "loss"), ("tie", "tie", "tie")]
    )
]
TABLE = [{"prompt": f"p{i}", "a": f"a{i}", "b": f"b{i}", "verdict": "win"} for i in range(4)]
COMPLETIONS = [{"id": f"i{i}", "prompt": f"p{i}", "completion": f" c{i}", "ended": True} for i in range(4)]
AT = st.integers(0, 3)
NO_TEXT = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.lists(st.integers(), max_size=3))
# None of these is a verdict, an outcome or a count of answers.
NONSENSE = st.one_of(
    st.integers(3, 10**30),
    st.integers(max_value=-1),
    st.floats(),
    st.text(max_size=8).filter(lambda text: text not in ("win", "tie", "loss", "first", "second", "unreadable")),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=3),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("verdicts")


def write(folder, rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def changed(rows, at, **values):
    return [row | values if i == at else row for i, row in enumerate(rows)]


@given(at=AT, column=st.sampled_from(("prompt", "completion")), value=NO_TEXT)
@settings(fuzz, max_examples=80)
def test_a_completion_that_is_no_text(folder, malformed, at, column, value):
    file = write(folder, changed(COMPLETIONS, at, **{column: value}))
    assert f"rows.jsonl, row {at + 1}: {column!r} holds " in refusal(lambda: read_completions(file))
    malformed["completions of wrong types"] += 1


@given(at=AT, column=st.sampled_from(("ended", "columns")), value=NONSENSE.filter(bool))
@settings(fuzz, max_examples=80)
def test_a_completion_with_a_broken_column(folder, malformed, at, column, value):
    if column == "columns" and isinstance(value, dict):
        return
    file = write(folder, changed(COMPLETIONS, at, **{column: value}))
    assert f"rows.jsonl, row {at + 1}: {column!r} " in refusal(lambda: read_completions(file))
    malformed["completions of wrong types"] += 1


@given(at=AT, column=st.sampled_from(("prompt", "completion")))
@settings(fuzz, max_examples=20)
def test_a_completion_without_a_column(folder, malformed, at, column):
    rows = changed(COMPLETIONS, at)
    rows[at] = {name: value for name, value in rows[at].items() if name != column}
    assert f"row {at + 1} lacks {column!r}" in refusal(lambda: read_completions(write(folder, rows)))
    malformed["completions without a column"] += 1


@given(at=AT, column=st.sampled_from(("a_first", "a_second", "outcome", "unreadable", "failed")), value=NONSENSE)
@settings(fuzz, max_examples=150)
def test_a_judgment_that_this_package_never_writes(folder, malformed, at, column, value):
    rows = read_rows_of_verdicts(write(folder, changed(JUDGED, at, **{column: value})))
    assert f"row {at + 1}: " in refusal(lambda: read_judgments(rows, "rows.jsonl"))
    malformed["judgments changed by hand"] += 1


@given(at=AT, outcome=st.sampled_from(("win", "tie", "loss", None)))
@settings(fuzz, max_examples=20)
def test_an_outcome_that_does_not_follow(folder, malformed, at, outcome):
    if outcome == JUDGED[at]["outcome"]:
        return
    rows = changed(JUDGED, at, outcome=outcome)
    assert f"row {at + 1}: the outcome" in refusal(lambda: read_judgments(rows, "rows.jsonl"))
    malformed["judgments changed by hand"] += 1


@given(at=AT, value=NONSENSE)
@settings(fuzz, max_examples=100)
def test_a_verdict_without_meaning(folder, malformed, at, value):
    file = write(folder, changed(TABLE, at, verdict=value))
    message = refusal(lambda: VerdictTable().read(read_rows_of_verdicts(file), file))
    assert "has no meaning" in message
    assert "rows.jsonl" in message
    malformed["verdicts without meaning"] += 1


@given(at=AT, column=st.sampled_from(("prompt", "a", "b")), value=NO_TEXT)
@settings(fuzz, max_examples=80)
def test_a_verdict_on_what_is_no_text(folder, malformed, at, column, value):
    file = write(folder, changed(TABLE, at, **{column: value}))
    message = refusal(lambda: VerdictTable().read(read_rows_of_verdicts(file), file))
    assert f"row {at + 1}: column {column!r} holds" in message
    malformed["verdicts of wrong types"] += 1


@given(at=AT, value=NONSENSE)
@settings(fuzz, max_examples=60)
def test_an_order_without_meaning(folder, malformed, at, value):
    if value in (1.0, 0.0):
        return
    file = write(folder, changed([row | {"swapped": True} for row in TABLE], at, swapped=value))
    message = refusal(lambda: VerdictTable(swapped="swapped").read(read_rows_of_verdicts(file), file))
    assert f"row {at + 1}: column 'swapped' holds" in message
    malformed["verdicts of wrong types"] += 1


@pytest.mark.parametrize("rows", [JUDGED, TABLE], ids=["judgments", "table"])
def test_analyse_of_spoiled_bytes(folder, malformed, capsys, rows):
    """The whole command: one line and status 2, or an analysis of what is a file of verdicts still."""
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()

    @given(spoiled(content))
    @settings(fuzz, max_examples=100)
    def check(bytes_):
        (folder / "rows.jsonl").write_bytes(bytes_)
        capsys.readouterr()
        with bounded():
            status = main(["analyse", str(folder / "rows.jsonl"), "--draws", "100"])
        error = capsys.readouterr().err
        if status:
            assert status == 2
            assert error.startswith("klqlit: error: ")
            assert error.count("\n") == 1
            assert "rows.jsonl" in error
            assert_clear(error.strip())
            malformed["verdicts of spoiled bytes"] += 1

    check()


@pytest.mark.parametrize("broken", [b"", b"\xff\xfe", b"[1, 2]", b"{}", b'{"prompt": 1}\n', b"[" * 9999])
def test_judge_refuses_a_broken_side(folder, malformed, capsys, tmp_path, monkeypatch, broken):
    monkeypatch.chdir(tmp_path)
    good = write(folder, COMPLETIONS)
    (tmp_path / "broken.jsonl").write_bytes(broken)
    for sides in (["--a", good, "--b", "broken.jsonl"], ["--a", "broken.jsonl", "--b", good]):
        assert main(["judge", *sides, "--judge", "LengthJudge"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "broken.jsonl" in error
        assert_clear(error)
        malformed["sides of a comparison"] += 1
