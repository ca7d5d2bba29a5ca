"""Judgments that were paid for once, kept in a file."""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, final

from klqlit.judges.base import Judgment, Question

VERSION = 1
"""Of the table and of what the key is made of."""

_WAIT = 30.0
"""Seconds to wait for another process that is writing."""

_TABLE = """
CREATE TABLE judgments (
    key TEXT PRIMARY KEY,
    verdict TEXT NOT NULL,
    answer TEXT NOT NULL,
    identity TEXT NOT NULL,
    time REAL NOT NULL
) WITHOUT ROWID
"""


@final
class JudgmentCache:
    """Judgments under the hash of the judge and all that it was shown, in an SQLite file.

    Each judgment is in the file when `put` returns: a process that is killed loses none. Several processes may use one
    file at once. A power cut may cost the last moments' judgments, but never the file. One thread uses one object.

    Args:
        path: the file; it is made where there is none, its folder too.

    Raises:
        ValueError: the file is none of ours, was written by another version, or cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Every statement is its own transaction: committed when it returns.
            self._database = sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None)
            try:
                self._open()
            except BaseException:
                self._database.close()
                raise

    def get(self, key: str) -> Judgment | None:
        """The judgment under a key of `question_key`, if there is one."""
        with self._explained():
            row = self._database.execute("SELECT verdict, answer FROM judgments WHERE key = ?", (key,)).fetchone()
        return None if row is None else Judgment(verdict=row[0], answer=row[1])

    def put(self, key: str, judgment: Judgment, identity: str) -> None:
        """Keep a judgment by the judge with this `canonical` identity. One that is there already stays."""
        answer = judgment.answer.encode("utf-8", "replace").decode()
        row = (key, judgment.verdict, answer, identity, time.time())
        with self._explained():
            self._database.execute("INSERT OR IGNORE INTO judgments VALUES (?, ?, ?, ?, ?)", row)

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def __len__(self) -> int:
        with self._explained():
            return int(self._database.execute("SELECT count(*) FROM judgments").fetchone()[0])

    def __enter__(self) -> "JudgmentCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        tables = self._database.execute("SELECT name FROM sqlite_master").fetchall()
        if not tables and version == 0:
            self._database.execute(_TABLE)
            self._database.execute(f"PRAGMA user_version = {VERSION}")
        self._database.execute("COMMIT")
        if tables and ("judgments",) not in tables:
            raise ValueError(f"the cache {str(self.path)!r} is an SQLite file of something else: {_WAY_OUT}")
        if tables and version != VERSION:
            raise ValueError(
                f"the cache {str(self.path)!r} was written in format {version}, and this version of klqlit reads "
                f"format {VERSION}: {_WAY_OUT}"
            )
        # Readers and a writer do not wait for each other, and a commit does not wait for the disk.
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise ValueError(f"the cache {str(self.path)!r} cannot be used ({error}): {_WAY_OUT}") from error


_WAY_OUT = "give another file with --cache, or delete this one"


def question_key(identity: str, question: Question) -> str:
    """SHA-256 of all that a judgment may depend on: the judge's `canonical` identity and the whole question."""
    parts = [
        identity,
        question.prompt,
        question.first,
        question.second,
        question.first_ended,
        question.second_ended,
        question.columns,
    ]
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


def canonical(value: Any) -> str:
    """JSON that is the same for equal values; what JSON does not know is written as `str` gives it."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), default=str)


def _plain(value: Any) -> Any:
    """Mappings as dicts with names as keys, all the way down: JSON cannot sort keys of several types."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
