"""Files that a run may have left half-written: what can be read is read, and what cannot is named."""

import json
from pathlib import Path
from typing import Any

import yaml

from klqlit.redaction import redacted

Row = dict[str, Any]


def read_rows(path: Path, problems: list[str]) -> list[Row]:
    """The objects of a file of JSON lines; none where there is no file.

    Args:
        path: the file.
        problems: takes one sentence if a line cannot be read.
    """
    if not path.is_file():
        return []
    # Not str.splitlines, which also breaks at characters that JSON allows inside a string.
    lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    parsed = [_parse(line) for line in lines]
    bad = [i for i, row in enumerate(parsed) if row is None and lines[i].strip()]
    if bad == [len(lines) - 1]:
        problems.append(f"{path.name}: the last line is torn, and was left out")
    elif bad:
        problems.append(f"{path.name}: {len(bad)} of {len(lines)} lines cannot be read, and were left out")
    return [row for row in parsed if row is not None]


def read_object(path: Path, problems: list[str]) -> Row:
    """A file that holds one JSON or YAML object, without its secrets; empty where there is none."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        problems.append(f"{path.name}: cannot be read, and was left out")
        return {}
    return mapping(redacted(found))


def mapping(value: Any) -> Row:
    """An object, or an empty one for whatever else a file may hold."""
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """A finite number, or None for whatever else a file may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < float("inf") else None


def _parse(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
