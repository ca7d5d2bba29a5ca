"""Verdicts from files: this package's judgments, and tables from elsewhere."""

import difflib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, final, get_args

from klqlit.data.reading import named, read_rows
from klqlit.data.source import Row
from klqlit.judges.matching import prompt_id
from klqlit.judges.records import JudgedPair, Outcome, Pair

Meaning = Literal["win", "tie", "loss", "first", "second", "unreadable"]
"""Of a verdict: A's outcome, or the place of the better response, or none."""

MEANINGS: tuple[Meaning, ...] = get_args(Meaning)

JUDGMENTS = "judgments.jsonl"
JUDGED = "judged.json"
"""Names of this package's files in the folder of a comparison."""

SWAPPED = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(kw_only=True, slots=True, frozen=True)
class _Verdict:
    """One row: A's outcome in one order; None where the row says that the answer was unreadable."""

    pair: Pair
    swapped: bool
    outcome: Outcome | None


def read_rows_of_verdicts(path: str) -> list[Row]:
    """Rows of a file of verdicts.

    Args:
        path: a .csv, .jsonl, .json or .parquet file, plain or .gz, or the folder of a comparison.

    Raises:
        ValueError: there is no such file, it is empty, or broken; the message names the line.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / JUDGMENTS
    if not file.is_file():
        raise ValueError(f"there is no file of verdicts {str(file)!r}: check the path (working in {os.getcwd()})")
    return read_rows(str(file))


@final
class VerdictTable:
    """The columns of a file of verdicts, and what the values in them mean.

    A verdict names a side ("response0", "model_a"), or the place in which the better response was shown ("first", "A").
    Values are compared as text; true, 1 and 1.0 of JSON are "true", "1" and "1", and null is "".

    Args:
        prompt: column of prompts. Rows with the same prompt are resampled together.
        a: column of side A's completions.
        b: column of side B's completions.
        verdict: column of verdicts.
        swapped: column that holds true, 1 or yes where A was shown second, and false, 0 or no where first. None: A was
            always shown first.
        meanings: what verdicts mean, beyond the six words that mean themselves. "unreadable" is one that the judge did
            not give; such rows are excluded and counted.
    """

    def __init__(
        self,
        *,
        prompt: str = "prompt",
        a: str = "a",
        b: str = "b",
        verdict: str = "verdict",
        swapped: str | None = None,
        meanings: Mapping[str, Meaning] | None = None,
    ) -> None:
        self.prompt, self.a, self.b, self.verdict, self.swapped = prompt, a, b, verdict, swapped
        given = {as_text(value): meaning for value, meaning in (meanings or {}).items()}
        self.meanings: dict[str, Meaning] = {**{meaning: meaning for meaning in MEANINGS}, **given}

    def read(self, rows: Sequence[Row], file: str) -> list[JudgedPair]:
        """The judged pairs of a table; two rows with equal prompt, A and B in both orders become one pair.

        Args:
            rows: of the table.
            file: where they come from, for messages.

        Raises:
            ValueError: a column is missing, or a value in it has no meaning; the message says where.
        """
        self._check_verdicts(rows, file)
        return list(_combine(self._verdict(row, f"{file}, row {i}") for i, row in enumerate(rows, start=1)))

    def _check_verdicts(self, rows: Sequence[Row], file: str) -> None:
        found = Counter(
            as_text(_cell(row, self.verdict, "--verdict", f"{file}, row {i}")) for i, row in enumerate(rows, start=1)
        )
        unknown = [value for value in found if value not in self.meanings]
        if unknown:
            listed = ", ".join(f"{value!r:.40} ({count} rows)" for value, count in found.most_common(10))
            raise ValueError(
                f"{file}: column {self.verdict!r} holds {listed}{' and others' if len(found) > 10 else ''}, of which "
                f"{unknown[0]!r:.40} has no meaning: say which values mean that A wins (--win), B wins (--loss), "
                "neither (--tie), no verdict (--unreadable), or name the better one's place (--first, --second)"
            )

    def _verdict(self, row: Row, where: str) -> _Verdict:
        prompt = _text(row, self.prompt, "--prompt", where)
        pair = Pair(
            id=prompt_id(prompt),
            prompt=prompt,
            a=_text(row, self.a, "--a", where),
            b=_text(row, self.b, "--b", where),
        )
        swapped = self.swapped is not None and _flag(row, self.swapped, where)
        outcomes: dict[str, Outcome] = {
            "win": "win",
            "tie": "tie",
            "loss": "loss",
            "first": "loss" if swapped else "win",
            "second": "win" if swapped else "loss",
        }
        return _Verdict(pair=pair, swapped=swapped, outcome=outcomes.get(self.meanings[as_text(row[self.verdict])]))


def _combine(verdicts: Iterable[_Verdict]) -> Iterable[JudgedPair]:
    """The n-th verdict on a pair in one order belongs to the n-th in the other."""
    orders: dict[tuple[str, str, str], tuple[list[_Verdict], list[_Verdict]]] = {}
    for verdict in verdicts:
        key = (verdict.pair.prompt, verdict.pair.a, verdict.pair.b)
        orders.setdefault(key, ([], []))[verdict.swapped].append(verdict)
    for straight, swapped in orders.values():
        for one, other in zip_longest(straight, swapped):
            given = [verdict for verdict in (one, other) if verdict is not None]
            yield JudgedPair(
                pair=given[0].pair,
                a_first=one.outcome if one else None,
                a_second=other.outcome if other else None,
                unreadable=sum(verdict.outcome is None for verdict in given),
                both_orders=len(given) == 2,
            )


def is_judgments(rows: Sequence[Row]) -> bool:
    """Whether rows are this package's own judgments, by the columns of the first."""
    return {"id", "prompt", "a", "b", "a_first", "a_second", "outcome"} <= set(rows[0])


def read_judgments(rows: Sequence[Row], file: str) -> list[JudgedPair]:
    """The judged pairs that this package wrote to `judgments.jsonl`.

    Raises:
        ValueError: a row is not what this package writes; the message says where.
    """
    return [_judged(row, f"{file}, row {i}") for i, row in enumerate(rows, start=1)]


def _judged(row: Row, where: str) -> JudgedPair:
    columns = ("id", "prompt", "a", "b", "a_first", "a_second", "outcome", "unreadable", "failed")
    cells = {name: _cell(row, name, "", where) for name in columns}
    for name in ("a_first", "a_second", "outcome"):
        if cells[name] not in (*get_args(Outcome), None):
            raise ValueError(f"{where}: {name!r} holds {cells[name]!r:.60}; it must hold win, tie, loss or null")
    for name in ("unreadable", "failed"):
        if type(cells[name]) is not int or not 0 <= cells[name] <= 2:
            raise ValueError(f"{where}: {name!r} holds {cells[name]!r:.60}; it must hold a number of answers, 0 to 2")
    prompt, a, b = (_text(row, name, "", where) for name in ("prompt", "a", "b"))
    # An outcome from one order alone says that one was enough.
    one_is_enough = cells["outcome"] is not None and None in (cells["a_first"], cells["a_second"])
    both_orders = row.get("both_orders", not one_is_enough)
    if not isinstance(both_orders, bool):
        raise ValueError(f"{where}: 'both_orders' holds {both_orders!r:.60}; it must hold true or false")
    judged = JudgedPair(
        pair=Pair(id=str(cells["id"]), prompt=prompt, a=a, b=b),
        a_first=cells["a_first"],
        a_second=cells["a_second"],
        unreadable=cells["unreadable"],
        failed=cells["failed"],
        both_orders=both_orders,
    )
    if judged.outcome != cells["outcome"]:
        raise ValueError(
            f"{where}: the outcome {cells['outcome']!r:.60} does not follow from a_first={judged.a_first!r} and "
            f"a_second={judged.a_second!r}: this file was changed by hand, or cut"
        )
    return judged


def names_of_sides(source: str) -> tuple[str, str] | None:
    """What `judge` called the sides of the comparison that it wrote; None where it wrote none there.

    Args:
        source: the comparison's folder, or the file of judgments in it.
    """
    path = Path(source).expanduser()
    file = (path.parent if path.name == JUDGMENTS else path) / JUDGED
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
        return str(written["a"]["name"]), str(written["b"]["name"])
    except (OSError, ValueError, KeyError, TypeError):  # no such file, or not one of ours
        return None


def as_text(value: Any) -> str:
    """A cell as it is compared with the values that an option names."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _cell(row: Row, column: str, option: str, where: str) -> Any:
    if column in row:
        return row[column]
    near = difflib.get_close_matches(column, list(row)[:1000], n=1, cutoff=0.6)
    raise ValueError(
        f"{where} has no column {column!r}; it has {named(row)}"
        + (f", of which {near[0]!r} comes nearest" if near else "")
        + (f": name the right one with {option}" if option else "")
    )


def _text(row: Row, column: str, option: str, where: str) -> str:
    value = _cell(row, column, option, where)
    if not isinstance(value, str):
        raise ValueError(
            f"{where}: column {column!r} holds {value!r:.60} ({type(value).__name__}), not text"
            + (f": name another with {option}" if option else "")
        )
    return value


def _flag(row: Row, column: str, where: str) -> bool:
    value = as_text(_cell(row, column, "--swapped", where)).lower()
    if value not in SWAPPED:
        raise ValueError(f"{where}: column {column!r} holds {value!r:.60}; it must hold one of {', '.join(SWAPPED)}")
    return SWAPPED[value]
