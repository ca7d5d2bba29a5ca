"""HH, TL;DR and tables: formats, splits and cuts, on rows one can read and on real ones."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.real_rows import HH_PAIRS, HH_PROMPTS, TLDR, needs_real_rows
from klqlit.data.columns import TableSource
from klqlit.data.hh import HHDialogue
from klqlit.data.shortening import longest
from klqlit.data.tldr import TLDRSummaries

POST = "SUBREDDIT: r/x\n\nTITLE: Two words\n\nPOST: One two three.\nFour five.\n\nSix.\n\nTL;DR:"
TLDR_COLUMNS = {"prompt": "query", "completion": "reference_responses"}


def words(text):
    return len(text.split())


@pytest.fixture
def write(tmp_path):
    def write(rows, name="rows.json"):
        (tmp_path / name).write_text(json.dumps(rows))
        return str(tmp_path / name)

    return write


def both(source):
    return source.rows("train") + source.rows("validation")


def dialogue(question, answer, *, before=""):
    return f"{before}\n\nHuman: {question}\n\nAssistant: {answer}"


def test_hh_splits_transcripts_at_the_last_answer(write):
    pairs = [{"chosen": dialogue(f"q{i}", f"good{i}"), "rejected": dialogue(f"q{i}", f" bad{i}\n")} for i in range(3)]
    rows = sorted(both(HHDialogue(write(pairs))), key=lambda row: row["prompt"])
    assert rows[1] == {
        "prompt": "\n\nHuman: q1\n\nAssistant:",
        "chosen": " good1",
        "rejected": " bad1",
        "completion": " good1",
    }


def test_hh_keeps_single_turns_unless_told_otherwise_and_counts_what_it_leaves_out(write, caplog):
    opening = dialogue("hello", "hi")
    rows = [
        {"chosen": dialogue("a", "x"), "rejected": dialogue("a", "y")},
        {"chosen": dialogue("b", "x"), "rejected": dialogue("b", "y")},
        {"chosen": dialogue("c", "x", before=opening), "rejected": dialogue("c", "y", before=opening)},
        {"chosen": dialogue("d", "x"), "rejected": dialogue("e", "y")},
        {"chosen": dialogue("f", "x"), "rejected": dialogue("f", "")},
    ]
    with caplog.at_level("INFO"):
        assert len(both(HHDialogue(write(rows)))) == 2
    for part in (
        "2 of 5 rows used",
        "1 of several human turns",
        "1 whose chosen and rejected answer different",
        "1 with",
    ):
        assert part in caplog.text
    several = both(HHDialogue(write(rows), single_turn=False))
    assert opening + "\n\nHuman: c\n\nAssistant:" in [row["prompt"] for row in several]


def test_hh_wraps_prompts_into_the_transcripts_format(write):
    rows = both(HHDialogue(write(["How?", "\n\nHuman: Why?\n\nAssistant: "])))
    assert {row["prompt"] for row in rows} == {"\n\nHuman: How?\n\nAssistant:", "\n\nHuman: Why?\n\nAssistant:"}
    bare = [{"prompt": q, "chosen": "yes", "rejected": " no", "id": 1} for q in ("a", "b")]
    assert {
        "prompt": "\n\nHuman: a\n\nAssistant:",
        "chosen": " yes",
        "completion": " yes",
        "rejected": " no",
        "id": 1,
    } in (both(HHDialogue(write(bare))))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "row 1 has neither `chosen` nor `prompt`; it has 'text'"),
        ({"prompt": " "}, "row 1: column 'prompt' is empty"),
        ({"chosen": 3}, "row 1: column 'chosen' holds 3"),
        ({"chosen": "yes"}, "row 1: 'chosen' must be a transcript"),
        ({"chosen": "\n\nHuman: a"}, "row 1: the transcript must end in an assistant turn"),
        ({"chosen": dialogue("a", "b") + "\n\nHuman: c"}, "row 1: the transcript must end in an assistant turn"),
        ({"chosen": dialogue("a", "b"), "rejected": dialogue("c", "d")}, "not one of its 2 rows can be used"),
    ],
)
def test_hh_refuses(write, row, message):
    with pytest.raises(ValueError, match=message):
        HHDialogue(write([row, row])).rows("train")


def test_hh_drops_the_earliest_turns_then_the_first_words(write):
    source = HHDialogue(write(["a", "b"]))
    prompt = dialogue("one two", "three") + dialogue("four five six", "")[:-1]
    assert source.shorten(prompt, words, 10) == prompt
    assert source.shorten(prompt, words, 9) == "\n\nHuman: four five six\n\nAssistant:"
    assert source.shorten(prompt, words, 4) == "\n\nHuman: five six\n\nAssistant:"
    with pytest.raises(ValueError, match="max_prompt_tokens=2 leaves no room"):
        source.shorten(prompt, words, 2)


def test_tldr_gives_completions_one_leading_space_and_keeps_other_columns(write):
    rows = [{"prompt": POST.replace("Six", str(i)) + " \n", "completion": "  sum \n", "n": i} for i in range(2)]
    row = both(TLDRSummaries(write(rows)))[0]
    assert row["completion"] == " sum"
    assert row["prompt"].endswith("\n\nTL;DR:")
    assert row["n"] in (0, 1)


def test_tldr_reads_preferences_and_renamed_columns(write):
    rows = [{"query": POST.replace("Six", str(i)), "best": "a", "worst": " b", "other": "c"} for i in range(2)]
    row = both(TLDRSummaries(write(rows), columns={"prompt": "query", "chosen": "best", "rejected": "worst"}))[0]
    assert {name: row[name] for name in row if name != "prompt"} == {"chosen": " a", "rejected": " b", "other": "c"}


def test_tldr_refuses_other_prompts_and_other_names(write):
    with pytest.raises(ValueError, match=r"row 1: a TL;DR prompt has 'POST:'.*'Summarise this.'.*use TableSource"):
        TLDRSummaries(write([{"prompt": "Summarise this."}])).rows("train")
    with pytest.raises(ValueError, match="columns maps 'query', which is none of prompt, completion, chosen, rejected"):
        TLDRSummaries("rows.json", columns={"query": "prompt"})
    with pytest.raises(ValueError, match="row 1 has no column 'summary'; it has 'prompt'"):
        TLDRSummaries(write([{"prompt": POST}]), columns={"completion": "summary"}).rows("train")


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (13, POST),
        (12, "SUBREDDIT: r/x\n\nTITLE: Two words\n\nPOST: One two three.\nFour five.\n\nTL;DR:"),
        (11, "SUBREDDIT: r/x\n\nTITLE: Two words\n\nPOST: One two three.\n\nTL;DR:"),
        (9, "SUBREDDIT: r/x\n\nTITLE: Two words\n\nPOST: One two\n\nTL;DR:"),
        (6, "SUBREDDIT: r/x\n\nTITLE: Two words\n\nTL;DR:"),
        (2, "SUBREDDIT:\n\nTL;DR:"),
    ],
)
def test_tldr_cuts_at_line_ends_then_at_words(write, limit, kept):
    source = TLDRSummaries(write([{"prompt": POST}]))
    assert source.shorten(POST, words, limit) == kept


def test_tldr_needs_room_for_its_tail(write):
    with pytest.raises(ValueError, match="max_prompt_tokens=1 leaves no room"):
        TLDRSummaries(write([{"prompt": POST}])).shorten(POST, words, 1)


def test_table_takes_texts_as_they_stand_and_cuts_on_the_left(write):
    rows = [{"question": f"q{i} ", "completion": "a", "topic": "t"} for i in range(2)]
    source = TableSource(write(rows), columns={"prompt": "question"})
    assert {"prompt": "q1 ", "completion": "a", "topic": "t"} in both(source)
    assert source.shorten("one two three", len, 5) == "three"
    assert source.shorten("one two three", len, 13) == "one two three"


@given(st.integers(0, 50), st.integers(-1, 60))
def test_longest_finds_the_boundary(most, boundary):
    found = longest(most, lambda k: k <= boundary)
    assert found == (None if boundary < 0 else min(most, boundary))


# Splits -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 12), min_size=2, max_size=60), st.randoms())
def test_no_prompt_stands_in_both_splits_whatever_the_order(tmp_path_factory, numbers, random):
    if len(set(numbers)) < 2:
        return
    file = tmp_path_factory.mktemp("rows") / "rows.json"
    file.write_text(json.dumps([f"p{n}" for n in numbers]))
    source = TableSource(str(file), validation_rows=1)
    held = {row["prompt"] for row in source.rows("validation")}
    assert len(held) == 1
    assert not held & {row["prompt"] for row in source.rows("train")}
    assert len(both(source)) == len(numbers)
    random.shuffle(numbers)
    file.write_text(json.dumps([f"p{n}" for n in numbers]))
    assert held == {row["prompt"] for row in TableSource(str(file), validation_rows=1).rows("validation")}


def test_prompts_of_the_validation_file_leave_the_training_rows(write, caplog):
    train, validation = write(["a", "b", "a", "c"]), write(["a", "d"], "validation.json")
    with caplog.at_level("INFO"):
        source = TableSource(train, validation_path=validation)
        assert source.rows("train") == [{"prompt": "b"}, {"prompt": "c"}]
    assert source.rows("validation") == [{"prompt": "a"}, {"prompt": "d"}]
    assert "2 of 4 training rows left out" in caplog.text


def test_one_row_in_twenty_is_held_out_by_default(write):
    assert len(TableSource(write([str(i) for i in range(60)])).rows("validation")) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_rows": 0}, "validation_rows=0 must be positive"),
        ({"validation_rows": 5}, "no training rows are left of the 2"),
        ({"validation_rows": 1, "validation_path": "x.json"}, "exclude each other"),
    ],
)
def test_splits_refuse(write, options, message):
    with pytest.raises(ValueError, match=message):
        TableSource(write(["a", "b"]), **options).rows("train")


# Real rows ----------------------------------------------------------------------------------------------------------


@needs_real_rows
def test_real_hh_pairs():
    rows = both(HHDialogue(str(HH_PAIRS)))
    # 2,312 rows: 1,645 of several turns, 5 of different prompts, 4 with an empty completion.
    assert len(rows) == 658
    assert all(row["prompt"].startswith("\n\nHuman: ") and row["prompt"].endswith("\n\nAssistant:") for row in rows)
    assert all(row[name][0] == " " and row[name][1] != " " for row in rows for name in ("chosen", "rejected"))
    assert len(both(HHDialogue(str(HH_PAIRS), single_turn=False))) == 2303


@needs_real_rows
def test_real_hh_prompts():
    source = HHDialogue(str(HH_PROMPTS), validation_rows=500)
    train, held = ({row["prompt"] for row in source.rows(split)} for split in ("train", "validation"))
    assert len(both(source)) == 20000
    # 12,048 first turns; white space around a turn makes no difference.
    assert len(train | held) == len(train) + len(held) <= 12048
    assert len(source.rows("validation")) >= 500


@needs_real_rows
@pytest.mark.parametrize("limit", [5, 50, 150])
def test_real_tldr_posts(limit):
    source = TLDRSummaries(str(TLDR), columns=TLDR_COLUMNS)
    rows = both(source)
    assert len(rows) == 1945
    short = [source.shorten(row["prompt"], words, limit) for row in rows]
    assert max(map(words, short)) <= limit
    assert all(text.endswith("\n\nTL;DR:") for text in short)
    assert all(new == row["prompt"] for new, row in zip(short, rows, strict=True) if words(row["prompt"]) <= limit)


def test_hh_rows_with_a_completion_get_its_leading_space(tmp_path):
    (tmp_path / "a.json").write_text('[{"prompt": "Which capital has France?", "completion": "Paris."}]')
    (tmp_path / "b.json").write_text('[{"prompt": "And Spain?", "completion": "Madrid."}]')
    source = HHDialogue(str(tmp_path / "a.json"), validation_path=str(tmp_path / "b.json"))
    assert [row["completion"] for row in source.rows("train")] == [" Paris."]
