"""Judgments are kept at once, under everything they may depend on, and foreign files are refused."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace

import pytest

from klqlit.judges.base import Judgment, Question
from klqlit.judges.cache import VERSION, JudgmentCache, canonical, question_key

QUESTION = Question(prompt="Why?", first="So.", second="No.", columns={"topic": "bread"})
WIN = Judgment(verdict="first", answer="The first.")


def test_a_judgment_is_found_again(tmp_path):
    key = question_key("judge", QUESTION)
    with JudgmentCache(tmp_path / "new" / "cache.sqlite") as cache:
        assert cache.get(key) is None
        cache.put(key, WIN, "judge")
    with JudgmentCache(tmp_path / "new" / "cache.sqlite") as cache:
        assert cache.get(key) == WIN
        assert len(cache) == 1


def test_the_first_judgment_stays(tmp_path):
    with JudgmentCache(tmp_path / "cache.sqlite") as cache:
        cache.put("key", WIN, "judge")
        cache.put("key", Judgment(verdict="second", answer="The second."), "judge")
        assert cache.get("key") == WIN


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt": "Why not?"},
        {"first": "So"},
        {"second": "No"},
        {"first_ended": False},
        {"second_ended": False},
        {"columns": {"topic": "butter"}},
        {"columns": {}},
        {"first": "No.", "second": "So."},
    ],
)
def test_whatever_a_judgment_depends_on_is_in_the_key(changed):
    assert question_key("judge", replace(QUESTION, **changed)) != question_key("judge", QUESTION)


def test_the_judge_is_in_the_key_and_the_order_of_names_is_not():
    assert question_key(canonical({"model": "a"}), QUESTION) != question_key(canonical({"model": "b"}), QUESTION)
    assert canonical({"a": 1, "b": {"c": (2,), "d": 3}}) == canonical({"b": {"d": 3, "c": [2]}, "a": 1})


def test_columns_need_not_be_json():
    columns = {"when": complex(1, 2), 3: {"x": {1}}, "half a pair": "\ud800"}
    assert question_key("judge", replace(QUESTION, columns=columns)) == question_key(
        "judge", replace(QUESTION, columns=dict(reversed(columns.items())))
    )


def test_half_a_surrogate_pair_in_an_answer_does_not_lose_the_verdict(tmp_path):
    with JudgmentCache(tmp_path / "cache.sqlite") as cache:
        cache.put("key", Judgment(verdict="tie", answer="both \ud83d"), "judge")
        assert cache.get("key") == Judgment(verdict="tie", answer="both ?")


def refusal(path):
    with pytest.raises(ValueError, match="give another file with --cache, or delete this one") as error:
        JudgmentCache(path)
    assert repr(str(path)) in str(error.value)
    return str(error.value)


def test_a_cache_of_another_version_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "cache.sqlite"
    JudgmentCache(path).close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    database.close()
    before = path.read_bytes()
    assert f"was written in format {VERSION + 1}, and this version of klqlit reads format {VERSION}" in refusal(path)
    assert path.read_bytes() == before


def test_other_files_are_refused(tmp_path):
    text, other, folder = tmp_path / "text", tmp_path / "other.sqlite", tmp_path / "folder"
    text.write_text("This is no database. " * 100)
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE recipes (bread TEXT)")
    database.close()
    folder.mkdir()
    assert "file is not a database" in refusal(text)
    assert "is an SQLite file of something else" in refusal(other)
    assert "unable to open" in refusal(folder)
    assert "cannot be used" in refusal(text / "below" / "cache.sqlite")
    assert text.read_text().startswith("This is no database.")


def test_a_file_cut_off_is_refused(tmp_path):
    path = tmp_path / "cache.sqlite"
    with JudgmentCache(path) as cache:
        for i in range(200):
            cache.put(str(i), Judgment(verdict="first", answer="x" * 200), "judge")
    path.write_bytes(path.read_bytes()[:6000])
    with pytest.raises(ValueError, match="give another file"):
        len(JudgmentCache(path))


def write(path, name, count):
    """Keep judgments of one's own and of everybody's."""
    with JudgmentCache(path) as cache:
        for i in range(count):
            cache.put(f"{name}-{i}", WIN, "judge")
            cache.put(f"shared-{i}", WIN, "judge")


def test_processes_share_a_file(tmp_path):
    path = tmp_path / "cache.sqlite"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=write, args=(path, name, 100)) for name in "abcd"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    with JudgmentCache(path) as cache:
        assert len(cache) == 5 * 100


KILLED = """
import os, signal, sys
from klqlit.judges.base import Judgment
from klqlit.judges.cache import JudgmentCache
cache = JudgmentCache(sys.argv[1])
for i in range(50):
    cache.put(str(i), Judgment(verdict="tie", answer=""), "judge")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_is_kept_survives_a_kill(tmp_path):
    path = tmp_path / "cache.sqlite"
    result = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=os.environ)
    assert result.returncode == -signal.SIGKILL
    with JudgmentCache(path) as cache:
        assert len(cache) == 50
