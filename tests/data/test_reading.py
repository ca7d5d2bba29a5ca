"""Every format reads to the same rows; every broken file is refused by one message that names it."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from klqlit.data.reading import read_rows, text

ROWS = [{"prompt": "Où?", "chosen": 'a "quoted", text\nof two lines'}, {"prompt": "b", "chosen": "c\u2028d"}]


def as_csv(rows):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["", *rows[0]])
    writer.writeheader()
    writer.writerows({"": i} | row for i, row in enumerate(rows))
    return out.getvalue().encode()


def as_parquet(rows):
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


WRITERS = {
    "json": lambda rows: json.dumps(rows, indent=1).encode(),
    "jsonl": lambda rows: ("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n").encode(),
    "csv": as_csv,
    "parquet": as_parquet,
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", WRITERS)
def test_formats(tmp_path, kind, packed):
    content = WRITERS[kind](ROWS)
    file = tmp_path / (f"rows.v1.{kind}" + (".gz" if packed else ""))
    file.write_bytes(gzip.compress(content) if packed else content)
    assert read_rows(str(file)) == ROWS


def test_a_long_text_is_no_broken_table(tmp_path):
    """By itself Python's reader takes fields of 128 KiB at most."""
    rows = [{"prompt": "word " * 2**16}]
    (tmp_path / "rows.csv").write_bytes(as_csv(rows))
    assert read_rows(str(tmp_path / "rows.csv")) == rows


def test_a_list_of_strings_becomes_prompts(tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text('["one", "two"]')
    assert read_rows(str(file)) == [{"prompt": "one"}, {"prompt": "two"}]


BROKEN = {
    "empty.jsonl": (b"\n", r"empty\.jsonl' is empty"),
    "none.json": (b"[]", r"none\.json' holds no rows"),
    "header.csv": (b"prompt,chosen\n", r"header\.csv' holds no rows"),
    "comma.json": (b'[{"prompt": "a"},\n {"prompt" "b"}]', r"comma\.json, line 2, column 12: broken JSON"),
    "lines.json": (b'{"a": "b"}\n{"a": "c"}', r"lines\.json, line 2.*name the file \.jsonl"),
    "object.json": (b'{"prompt": "a"}', r"object\.json holds a JSON dict; it must hold a list"),
    "number.json": (b'["a", 3]', r"number\.json, row 2 is 3 \(int\)"),
    "cut.jsonl": (b'{"prompt": "a"}\n\n{"prompt": "b', r"cut\.jsonl, line 3, column 12: broken JSON"),
    "list.jsonl": (b'{"prompt": "a"}\n[1]\n', r"list\.jsonl, line 2 is \[1\] \(list\)"),
    "short.csv": (b"prompt,chosen\na,b\nc\n", r"short\.csv, line 3: the row does not have the header's 2 fields"),
    "long.csv": (b"prompt,chosen\na,b,c\n", r"long\.csv, line 2: the row does not have the header's 2 fields"),
    "quote.csv": (b'prompt\n"a\n', r"quote\.csv, line 2: broken CSV"),
    "latin.jsonl": (b'{"prompt": "a"}\n{"prompt": "\xe9"}\n', r"latin\.jsonl, line 2: byte 28 is not UTF-8"),
    "plain.jsonl.gz": (b'{"prompt": "a"}\n', r"plain\.jsonl\.gz' cannot be read"),
    "half.csv.gz": (gzip.compress(b"prompt\na\n")[:-4], r"half\.csv\.gz' cannot be read"),
    "text.parquet": (b"prompt\na\n", r"text\.parquet' is not a readable parquet file"),
    "table.xlsx": (b"x", r"suffix '\.xlsx'; data files end in \.json, \.jsonl, \.csv, \.parquet"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(tmp_path, name):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_rows(str(tmp_path / name))


@pytest.mark.parametrize("path", ["./no/such", "rows.jsonl", "/data/rows", "a/b/c", "owner/rows.csv.gz"])
def test_a_missing_file_is_not_taken_for_a_name_on_the_hub(path):
    with pytest.raises(ValueError, match=f"there is no data file '{path}'"):
        read_rows(path)


def test_a_local_file_takes_the_place_of_a_hub_name_with_data_dir(tmp_path):
    (tmp_path / "a.json").write_text('["a"]')
    assert read_rows(str(tmp_path / "a.json"), data_dir="helpful-base") == [{"prompt": "a"}]


def test_a_hub_name_without_network_says_how_to_give_a_file():
    code = (
        "from klqlit.data.reading import read_rows\ntry: read_rows('owner/some-data')\nexcept ValueError as e: print(e)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "'owner/some-data' is neither a file here nor a data set the hub could give" in done.stdout
    assert "give the path of a local .jsonl, .json, .csv or .parquet file instead" in done.stdout


def test_a_directory_is_read_like_a_data_set_of_the_hub(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name}) + "\n")
    assert read_rows(str(tmp_path)) == [{"prompt": "train"}]
    assert read_rows(str(tmp_path), split="validation") == [{"prompt": "test"}]


def test_a_missing_column_names_those_there_and_the_nearest():
    with pytest.raises(
        ValueError, match=r"f, row 1 has no column 'prompt'; it has 'id', 'prompts', of which 'prompts'"
    ):
        text({"id": 1, "prompts": "a"}, "prompt", "f, row 1")


@pytest.mark.parametrize(("value", "message"), [(None, "NoneType"), (["a"], "list"), ("  \n", "is empty")])
def test_a_text_must_be_text(value, message):
    with pytest.raises(ValueError, match=rf"f, row 7: column 'prompt'.*{message}"):
        text({"prompt": value}, "prompt", "f, row 7")


@pytest.mark.parametrize("path", ["mine.txt", "Mine.TXT", "owner/mine.tsv", "runs/none", "runs/none.txt"])
def test_a_mistyped_file_is_not_asked_of_the_hub(tmp_path, monkeypatch, path):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"there is no data file .* data files end in \.json, \.jsonl, \.csv, \.parquet"
    ):
        read_rows(path)


def test_a_mistyped_name_of_a_kind_that_is_read_is_just_not_there():
    with pytest.raises(ValueError, match=r"there is no data file 'mine\.csv\.gz': check the path \(current.*\)$"):
        read_rows("mine.csv.gz")
