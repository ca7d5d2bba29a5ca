"""Malformed data files: refused in one line that names file and place, or repaired as the documentation says."""

import csv
import gzip
import io
import json
import os
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klqlit.data.columns import TableSource
from klqlit.data.hh import HHDialogue
from klqlit.data.reading import read_rows
from klqlit.data.tldr import TLDRSummaries
from reliability.mutations import spoiled
from reliability.refusals import fuzz, refusal

ROWS = [{"prompt": f"Où est {i}?", "chosen": f'a "{i}", and\nmore', "score": str(i)} for i in range(8)]
TRANSCRIPT = "\n\nHuman: Why {}?\n\nAssistant: Because."
POST = "SUBREDDIT: r/x\n\nTITLE: {}\n\nPOST: It rained.\n\nTL;DR:"


def as_csv(rows):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_parquet(rows, checksums=True):
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out, write_page_checksum=checksums)
    return out.getvalue()


def as_jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


WRITERS = {"jsonl": as_jsonl, "json": lambda rows: json.dumps(rows).encode(), "csv": as_csv, "parquet": as_parquet}


def write(folder, name, content):
    file = Path(folder) / name
    file.write_bytes(content)
    return str(file)


# Bytes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("kind", WRITERS)
def test_spoiled_bytes(tmp_path, malformed, kind, packed):
    """Refused with the file's name; or, where what is left is a file of this kind, read as rows."""
    content = WRITERS[kind](ROWS)
    name = f"rows.{kind}" + (".gz" if packed else "")

    @given(spoiled(gzip.compress(content, mtime=0) if packed else content))
    @settings(fuzz, max_examples=110)
    def check(bytes_):
        file = write(tmp_path, name, bytes_)
        found = []
        message = refusal(lambda: found.extend(read_rows(file)))
        if message is None:
            assert found
            assert all(isinstance(row, dict) for row in found)
        else:
            assert name in message
            malformed["data files of spoiled bytes"] += 1

    check()


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet", "jsonl.gz", "csv.gz"])
def test_foreign_bytes(tmp_path, malformed, kind):
    @given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda text: text.encode("utf-16"))))
    @settings(fuzz, max_examples=30)
    def check(content):
        file = write(tmp_path, f"rows.{kind}", content)
        # A word alone is a header of CSV without rows, and is refused like everything else here.
        assert f"rows.{kind}" in (refusal(lambda: TableSource(file).rows("train")) or "")
        malformed["data files of foreign bytes"] += 1

    check()


# Rows ----------------------------------------------------------------------------------------------------------------

NOT_TEXT = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),  # NaN and the infinities among them
    st.lists(st.text(max_size=5), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
    st.text(alphabet=" \t\n\r\u2003", max_size=5),
    st.text(max_size=5).map(lambda text: text + "\0"),
)
AT = st.integers(0, len(ROWS) - 1)


@given(column=st.sampled_from(("prompt", "chosen")), value=NOT_TEXT, at=AT, lines=st.booleans())
@settings(fuzz, max_examples=150)
def test_what_is_no_text_names_file_row_and_column(tmp_path_factory, malformed, column, value, at, lines):
    rows = [row | ({column: value} if i == at else {}) for i, row in enumerate(ROWS)]
    name = "rows.jsonl" if lines else "rows.json"
    content = as_jsonl(rows) if lines else json.dumps(rows).encode()
    file = write(tmp_path_factory.getbasetemp(), name, content)
    for source in (TableSource, HHDialogue):
        message = refusal(lambda source=source: source(file).rows("train"))
        assert message is not None
        # HH reads row by row in its own format; every row before is no transcript.
        if source is TableSource:
            assert f"{name}, row {at + 1}: column {column!r}" in message
        malformed["rows of wrong types"] += 1


@given(at=AT, item=st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.lists(st.integers(), max_size=3)))
@settings(fuzz, max_examples=100)
def test_what_is_no_row_names_file_and_line(tmp_path_factory, malformed, at, item):
    rows = [item if i == at else row for i, row in enumerate(ROWS)]
    folder = tmp_path_factory.getbasetemp()
    assert f"a.jsonl, line {at + 1} is " in refusal(lambda: read_rows(write(folder, "a.jsonl", as_jsonl(rows))))
    assert f"a.json, row {at + 1} is " in refusal(lambda: read_rows(write(folder, "a.json", json.dumps(rows).encode())))
    malformed["rows that are none"] += 2


BROKEN_LINES = {
    "twice": '{"prompt": "a", "prompt": "b"}',
    "twice within": '{"prompt": "a", "x": {"b": 1, "b": 2}}',
    "lists without end": '{"prompt": ' + "[" * 100_000,
    "objects without end": '{"a": ' * 100_000,
    "a deep value": '{"prompt": "a", "x": ' + "[" * 50_000 + "]" * 50_000 + "}",
    "a long number": '{"prompt": "a", "x": ' + "9" * 10_000 + "}",
    "torn": '{"prompt": "a',
    "single quotes": "{'prompt': 'a'}",
    "a comment": '{"prompt": "a"} // b',
    "python": '{"prompt": None}',
    "two": '{"prompt": "a"} {"prompt": "b"}',
    "a tab in a string": '{"prompt": "a\tb"}',
    "a bad escape": '{"prompt": "\\x41"}',
    "a NUL": '{"prompt": "a"}\0',
}


@pytest.mark.parametrize("what", BROKEN_LINES)
def test_broken_json_names_the_line(tmp_path, malformed, what):
    for at in range(len(ROWS)):
        lines = [json.dumps(row) for row in ROWS]
        lines[at] = BROKEN_LINES[what]
        file = write(tmp_path, "rows.jsonl", "\n".join(lines).encode())
        assert f"rows.jsonl, line {at + 1}" in refusal(lambda file=file: read_rows(file))
        file = write(tmp_path, "rows.json", ("[" + ",\n".join(lines) + "]").encode())
        assert "rows.json" in refusal(lambda file=file: read_rows(file))
        malformed["broken JSON"] += 2


@given(header=st.lists(st.sampled_from(("prompt", "chosen", "rejected", "x")), min_size=5, max_size=8))
@settings(fuzz, max_examples=40)
def test_a_column_twice_in_a_header(tmp_path_factory, malformed, header):
    content = (",".join(header) + "\n" + ",".join("abcdefgh"[: len(header)]) + "\n").encode()
    file = write(tmp_path_factory.getbasetemp(), "rows.csv", content)
    assert "rows.csv, line 1: the column" in refusal(lambda: read_rows(file))
    malformed["tables with a column twice"] += 1


@given(at=AT, change=st.sampled_from(("one field less", "one more", "an open quote", "a NUL")))
@settings(fuzz, max_examples=60)
def test_broken_lines_of_csv(tmp_path_factory, malformed, at, change):
    lines = ["prompt,chosen", *(f"p{i},c{i}" for i in range(len(ROWS)))]
    lines[at + 1] = {
        "one field less": "p",
        "one more": "p,c,d",
        "an open quote": '"p,c',
        "a NUL": "p\0,c",
    }[change]
    file = write(tmp_path_factory.getbasetemp(), "rows.csv", "\n".join(lines).encode())
    message = refusal(lambda: TableSource(file).rows("train"))
    # An open quote swallows what follows: it is known at the end. Python 3.10 reads no NUL.
    whole_row = change == "a NUL" and sys.version_info >= (3, 11)
    place = f"row {at + 1}" if whole_row else f"line {len(ROWS) + 1 if change == 'an open quote' else at + 2}"
    assert f"rows.csv, {place}" in message
    malformed["broken CSV"] += 1


@given(columns=st.integers(1, 3000), named=st.booleans())
@settings(fuzz, max_examples=30)
def test_a_table_without_prompts_however_wide(tmp_path_factory, malformed, columns, named):
    name = "a column of a long name " if named else "c"
    rows = [{f"{name}{i}": "x" for i in range(columns)}] * 2
    file = write(tmp_path_factory.getbasetemp(), "wide.jsonl", as_jsonl(rows))
    for source in (TableSource, HHDialogue, TLDRSummaries):
        message = refusal(lambda source=source: source(file).rows("train"))
        assert "wide.jsonl, row 1 has n" in message
        assert "'prompt'" in message or "`prompt`" in message
        malformed["tables without prompts"] += 1


# Formats -------------------------------------------------------------------------------------------------------------

BAD_TRANSCRIPTS = {
    "no assistant": "\n\nHuman: Why?",
    "the human last": TRANSCRIPT.format(1) + "\n\nHuman: Oh.",
    "no human": "Why?",
    "other marks": "Human: Why?\nAssistant: So.",
    "a letter": "\n\nhuman: Why?\n\nassistant: So.",
}


@pytest.mark.parametrize("what", BAD_TRANSCRIPTS)
def test_broken_transcripts_name_the_row(tmp_path, malformed, what):
    for at in range(8):
        for side in ("chosen", "rejected"):
            rows = [{"chosen": TRANSCRIPT.format(i), "rejected": TRANSCRIPT.format(i)} for i in range(8)]
            rows[at][side] = BAD_TRANSCRIPTS[what]
            file = write(tmp_path, "hh.jsonl", as_jsonl(rows))
            assert f"hh.jsonl, row {at + 1}" in refusal(lambda file=file: HHDialogue(file).rows("train"))
            malformed["broken transcripts"] += 1


@given(
    kinds=st.lists(
        st.sampled_from(("good", "several turns", "other prompt", "empty completion")), min_size=3, max_size=9
    )
)
@settings(fuzz, max_examples=60)
def test_transcripts_left_out_are_counted(tmp_path_factory, malformed, caplog, kinds):
    """A documented repair: every row is used or counted in one line."""
    made = {
        "good": lambda i: (TRANSCRIPT.format(i), TRANSCRIPT.format(i)),
        "several turns": lambda i: (TRANSCRIPT.format(i) + TRANSCRIPT.format(i),) * 2,
        "other prompt": lambda i: (TRANSCRIPT.format(i), TRANSCRIPT.format(f"not {i}")),
        "empty completion": lambda i: (TRANSCRIPT.format(i).replace("Because.", " "),) * 2,
    }
    kinds = ["good", "good", *kinds]
    rows = [dict(zip(("chosen", "rejected"), made[kind](i), strict=True)) for i, kind in enumerate(kinds)]
    file = write(tmp_path_factory.getbasetemp(), "hh.jsonl", as_jsonl(rows))
    caplog.clear()
    with caplog.at_level("INFO"):
        source = HHDialogue(file, validation_rows=1)
        used = len(source.rows("train")) + len(source.rows("validation"))
    assert used == kinds.count("good")
    left_out = len(kinds) - used
    if left_out:
        assert f"{used} of {len(kinds)} rows used" in caplog.text
        for kind, words in {
            "several": "several human turns",
            "other": "different prompts",
            "empty": "empty comp",
        }.items():
            count = sum(one.startswith(kind) for one in kinds)
            assert (f"{count} " in caplog.text and words in caplog.text) or not count
    malformed["transcripts left out and counted"] += left_out


@given(at=AT, post=st.text(alphabet="abc \n:PTLDR;O", max_size=30))
@settings(fuzz, max_examples=100)
def test_broken_posts_name_the_row(tmp_path_factory, malformed, at, post):
    rows = [{"prompt": POST.format(i), "completion": " Rain."} for i in range(8)]
    rows[at]["prompt"] = post
    file = write(tmp_path_factory.getbasetemp(), "tldr.jsonl", as_jsonl(rows))
    assert f"tldr.jsonl, row {at + 1}" in refusal(lambda: TLDRSummaries(file).rows("train"))
    malformed["broken posts"] += 1


# Repairs -------------------------------------------------------------------------------------------------------------


@given(at=st.integers(0, 20), half=st.sampled_from("\ud800\udbff\udc00\udfff"), column=st.sampled_from(("prompt", "x")))
@settings(fuzz, max_examples=60)
def test_half_a_surrogate_pair_becomes_a_question_mark(tmp_path_factory, malformed, at, half, column):
    text = "What is two and two?"
    rows = [{"prompt": "a", "x": "b"}, {"prompt": "c", "x": "d"}]
    rows[1][column] = text[:at] + half + text[at:]
    folder = tmp_path_factory.getbasetemp()
    for name, content in {"a.jsonl": "\n".join(map(json.dumps, rows)), "a.json": json.dumps(rows)}.items():
        source = TableSource(write(folder, name, content.encode()), validation_rows=1)
        found = source.rows("train") + source.rows("validation")
        assert text[:at] + "?" + text[at:] in [row[column] for row in found]
        malformed["repaired texts"] += 1


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_byte_order_mark_and_windows_lines_change_nothing(tmp_path, malformed, kind, packed):
    plain = [{name: value.replace("\n", " ") for name, value in row.items()} for row in ROWS]
    content = b"\xef\xbb\xbf" + WRITERS[kind](plain).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    name = f"rows.{kind}" + (".gz" if packed else "")
    assert read_rows(write(tmp_path, name, gzip.compress(content) if packed else content)) == plain
    malformed["repaired texts"] += 1


# Files ---------------------------------------------------------------------------------------------------------------


def test_a_bomb_is_not_unpacked(tmp_path, malformed):
    bomb = gzip.compress(b" " * 2**27, 9)
    assert len(bomb) < 2**18
    message = refusal(lambda: read_rows(write(tmp_path, "bomb.jsonl.gz", bomb)))
    assert "bomb.jsonl.gz" in message
    assert "unpack" in message
    malformed["bombs"] += 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "a.parquet", "a.jsonl.gz"])
def test_what_is_no_file(tmp_path, malformed, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / f"pipe-{name}")
    for path in (
        tmp_path / name,
        tmp_path / "loop" / name,
        tmp_path / f"pipe-{name}",
        f"{tmp_path}/{'long' * 100}-{name}",
        f"{tmp_path}/a\0{name}",
        f"~nobody-of-this-name/{name}",
        "/dev/null",
    ):
        assert refusal(lambda path=path: read_rows(str(path))) is not None
        malformed["paths without a file"] += 1


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 rubbish", b"\xff\xfe\x00"], ids=["none", "0", "pk", "ff"])
@pytest.mark.parametrize("name", ["rows.jsonl", "train.csv", "x.parquet", "x.bin", "script.py"])
def test_a_directory_without_a_data_set(tmp_path, malformed, monkeypatch, content, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert str(tmp_path) in refusal(lambda: read_rows(str(tmp_path)))
    malformed["directories without a data set"] += 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can be somebody else for a moment")
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "a.parquet", "a.jsonl.gz"])
def test_a_file_of_somebody_else(tmp_path, malformed, name):
    file = write(tmp_path, name, b"x")
    os.chmod(file, 0o600)
    os.seteuid(65534)
    try:
        assert name in refusal(lambda: read_rows(file))
    finally:
        os.seteuid(0)
    malformed["files without permission"] += 1
