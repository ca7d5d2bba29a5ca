"""The folder of a comparison: `judged.json`, `judgments.jsonl`, and the prompts of one side alone."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from klqlit.commands.sides import Letter, Side, slug
from klqlit.files import replace_json
from klqlit.judges.base import Judge
from klqlit.judges.cache import canonical
from klqlit.judges.matching import Matching
from klqlit.judges.records import JudgedPair
from klqlit.judges.verdict_files import JUDGED, JUDGMENTS

UNMATCHED = "unmatched.jsonl"


def choose_folder(out: str | None, sides: Mapping[Letter, Side], judge: Judge, *, default: Path) -> Path:
    """Where a comparison is written: `out`, else a folder in `default` that is named after the sides and the judge.

    Raises:
        ValueError: another comparison stands in `out`.
    """
    subject = [sides["a"].source, sides["b"].source, judge.identity]
    if out is None:
        name = f"{slug(sides['a'].name)}-vs-{slug(sides['b'].name)}-{type(judge).__name__}"
        if _is_free(default / name, subject):
            return default / name
        return default / f"{name}-{hashlib.sha256(canonical(subject).encode()).hexdigest()[:8]}"
    if not _is_free(Path(out), subject):
        raise ValueError(
            f"--out {out} holds a comparison of other sides or by another judge: give it a folder of its own"
        )
    return Path(out)


def write_comparison(folder: Path, judged: Sequence[JudgedPair], matching: Matching, result: Mapping[str, Any]) -> None:
    """Write all files; each appears, or replaces an older one, complete.

    Raises:
        ValueError: `folder` cannot be written.
    """
    unmatched = [
        {"side": side, "id": response.id, "prompt": response.prompt}
        for side, responses in (("a", matching.only_in_a), ("b", matching.only_in_b))
        for response in responses
    ]
    try:
        replace_json(folder / JUDGMENTS, _lines(map(as_row, judged)))
        replace_json(folder / UNMATCHED, _lines(unmatched))
        replace_json(folder / JUDGED, json.dumps(result, indent=1, allow_nan=False, default=str) + "\n")
    except OSError as error:
        raise ValueError(f"--out {folder} cannot be written ({error.strerror}): give another folder") from error


def as_row(judged: JudgedPair) -> dict[str, Any]:
    """A line of `judgments.jsonl`."""
    pair = judged.pair
    return {
        "id": pair.id,
        "prompt": pair.prompt,
        "a": pair.a,
        "b": pair.b,
        "a_ended": pair.a_ended,
        "b_ended": pair.b_ended,
        "a_first": judged.a_first,
        "a_second": judged.a_second,
        "outcome": judged.outcome,
        "both_orders": judged.both_orders,
        "inconsistent": judged.inconsistent,
        "unreadable": judged.unreadable,
        "failed": judged.failed,
        "answers": dict(judged.answers),
    }


def _is_free(folder: Path, subject: list[Any]) -> bool:
    """Nothing stands there, or the same comparison."""
    file = folder / JUDGED
    if not file.exists():
        return True
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        there = [found["a"]["source"], found["b"]["source"], found["judge"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not what this command writes: remove it, or give another --out") from error
    return canonical(there) == canonical(subject)


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
