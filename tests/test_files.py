"""A reader meets the old file or the new one, and nothing between."""

import json
import os
from pathlib import Path

import pytest

from klqlit.files import replace_json


def test_a_file_appears_with_its_folder_and_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    replace_json(path, '{"a": "first, and longer"}\n')
    replace_json(path, '{"a": "é"}\n')
    assert path.read_bytes() == '{"a": "é"}\n'.encode()
    assert [file.name for file in path.parent.iterdir()] == ["rows.jsonl"]


def test_an_older_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("old")
    (tmp_path / ".rows.jsonl.tmp").mkdir()  # nothing can be written there
    with pytest.raises(OSError):  # noqa: PT011
        replace_json(path, "new")
    assert path.read_text() == "old"


def test_half_a_surrogate_pair_comes_back(tmp_path):
    path = tmp_path / "row.json"
    replace_json(path, json.dumps({"a": "\ud83d"}, ensure_ascii=False))
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "\ud83d"}


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    path, seen = tmp_path / "row.json", []
    flush, replace = os.fsync, Path.replace

    def note_flush(descriptor):
        seen.append(("flushed", os.fstat(descriptor).st_size))
        flush(descriptor)

    def note_replace(scratch, target):
        seen.append(("replaced", target))
        return replace(scratch, target)

    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(Path, "replace", note_replace)
    replace_json(path, "{}\n")
    assert seen == [("flushed", 3), ("replaced", path)]
