"""A comparison's folder, read: who was compared, by which judge, and what came out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from klqlit.judges.records import VALUES
from klqlit.reports.reading import Row, mapping, number, read_object, read_rows

Side = Literal["a", "b"]
SIDES: tuple[Side, Side] = ("a", "b")


@dataclass(kw_only=True, slots=True, frozen=True)
class Share:
    """A win rate with its interval, where there is one."""

    rate: float
    low: float | None
    high: float | None

    def of_other_side(self) -> "Share":
        """The same from the other side's view."""
        ends = [None if end is None else 1 - end for end in (self.high, self.low)]
        return Share(rate=1 - self.rate, low=ends[0], high=ends[1])


@dataclass(kw_only=True, slots=True, frozen=True)
class Judged:
    """One comparison.

    Attributes:
        folder: where it is.
        name: what the report calls it.
        summary: judged.json.
        judgments: rows of judgments.jsonl, one a pair.
        completions: rows of both sides' completions with their scores, where the files are still there.
        problems: what could not be read.
    """

    folder: Path
    name: str
    summary: Row
    judgments: list[Row]
    completions: dict[Side, list[Row]]
    problems: list[str]

    @property
    def judge(self) -> Row:
        """The judge's identity."""
        return mapping(self.summary.get("judge")) or {"name": str(self.summary.get("judge"))}

    @property
    def level(self) -> float:
        """Of the intervals."""
        return number(self.summary.get("level")) or 0.95

    def side(self, side: Side) -> Row:
        """Name, source and run of a side."""
        return mapping(self.summary.get(side)) or {"name": side.upper()}

    def count(self, name: str) -> int | None:
        """One of the counts."""
        value = number(self.part("counts").get(name))
        return None if value is None else int(value)

    def part(self, name: str) -> Row:
        """A part of the summary; empty where it is missing."""
        return mapping(self.summary.get(name))

    def share(self, name: str) -> Share | None:
        """`win_rate` or `length_controlled` of side A."""
        found = mapping(self.part("statistics").get(name))
        rate = number(found.get("rate"))
        return None if rate is None else Share(rate=rate, low=number(found.get("low")), high=number(found.get("high")))

    def values(self) -> dict[str, list[float]]:
        """1, 1/2 or 0 for each of A's wins, ties and losses, by prompt id."""
        found: dict[str, list[float]] = {}
        for row in self.judgments:
            if row.get("outcome") in VALUES:
                found.setdefault(str(row.get("id")), []).append(VALUES[row["outcome"]])
        return found


def read_comparison(folder: Path, name: str) -> Judged:
    """A folder that `judge` wrote."""
    problems: list[str] = []
    summary = read_object(folder / "judged.json", problems)
    judgments = read_rows(folder / "judgments.jsonl", problems)
    found = Judged(folder=folder, name=name, summary=summary, judgments=judgments, completions={}, problems=problems)
    for side in SIDES:
        file = found.side(side).get("completions")
        found.completions[side] = read_rows(Path(file), problems) if isinstance(file, str) else []
    return found


def template_hash(judge: dict[str, Any]) -> str:
    """The hash of the judge's template; a judge without template has none."""
    return str(judge.get("template_hash") or mapping(judge.get("template")).get("hash") or "")
