"""Rows from files and from the hub."""

import csv
import difflib
import gzip
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from klqlit.data.hub_rows import read_hub
from klqlit.data.json_text import parse_json
from klqlit.data.source import Row, Split
from klqlit.hub import can_only_be_a_path

SHOWN = 12
"""Columns in a message."""

MAX_GROWTH = 200
"""Times its size, beyond `FREE_BYTES`, that a .gz may unpack to: text shrinks to a tenth, a bomb to a thousandth."""

FREE_BYTES = 2**26

_OTHERS = "gz bz2 xz zst zip txt text tsv md xml yaml yml ndjson xls xlsx arrow feather db sqlite pkl npy pt"
OTHER_SUFFIXES = {f".{name}" for name in _OTHERS.split()}
"""Of files that are not read: a name that ends in one is no data set's on the hub either."""


def read_rows(path: str, *, split: Split = "train", data_dir: str | None = None) -> list[Row]:
    """All rows at `path`, as dicts.

    Args:
        path: a file (.json, .jsonl, .csv or .parquet, each plain or .gz), or a data set's name on the hub, or a
            directory with a copy of it. A JSON list of strings becomes rows with the one column `prompt`.
        split: which split of a data set on the hub; "validation" falls back to its "test". A file is one split.
        data_dir: subdirectory of the data set on the hub, such as "helpful-base" of Anthropic/hh-rlhf. A local file has
            none, so that a configuration for the hub takes one by `path` alone.

    Raises:
        ValueError: nothing usable there; the message names the file, the line or row, and the way out.
    """
    file, is_file, is_directory = _find(path)
    if is_file:
        rows = _read_file(file)
    elif is_directory or not _looks_like_file(path):
        rows = read_hub(path, split, data_dir)
    else:
        raise ValueError(
            f"there is no data file {path!r}: check the path (current directory: {os.getcwd()})"
            + ("" if _kind(file) in READERS else f"; {FORMATS}")
        )
    if not rows:
        raise ValueError(f"the data file {path!r} holds no rows: give a file with at least one")
    return rows


def text(row: Row, column: str, where: str) -> str:
    """The text in a row's column.

    Args:
        row: a row.
        column: the column's name in the file.
        where: file and row, for the message.

    Raises:
        ValueError: there is no such column, or it holds anything but text, or nothing but white space.
    """
    if column not in row:
        raise ValueError(f"{where} has no column {column!r}; {_present(column, row)}")
    value = row[column]
    if not isinstance(value, str):
        raise ValueError(f"{where}: column {column!r} holds {value!r:.60} ({type(value).__name__}); it must hold text")
    if not value.strip():
        raise ValueError(f"{where}: column {column!r} is empty; remove the row or give it text")
    if "\0" in value:
        raise ValueError(f"{where}: column {column!r} holds a NUL character, as broken files do; save the file anew")
    return value


def named(row: Mapping[str, Any]) -> str:
    """The columns of a row, for a message."""
    shown = [f"{name!r:.60}" for name in list(row)[:SHOWN]]
    return ", ".join(shown) + (f" and {len(row) - SHOWN} more" if len(row) > SHOWN else "")


def _present(column: str, row: Row) -> str:
    near = difflib.get_close_matches(column, list(row)[:1000], n=1, cutoff=0.0)
    hint = f", of which {near[0]!r:.60} comes nearest" if near else ""
    return f"it has {named(row)}{hint}: say with `columns` which one to read"


def _find(path: str) -> tuple[Path, bool, bool]:
    """The path, and whether it is a file or a directory."""
    try:
        file = Path(path).expanduser()
        return file, file.is_file(), file.is_dir()
    except (OSError, RuntimeError) as error:  # no permission, too long a name, no such user
        raise ValueError(f"the data file {path!r:.200} cannot be looked for: {error}") from error


def _looks_like_file(path: str) -> bool:
    """Names on the hub may hold a dot too, as in a version."""
    return can_only_be_a_path(path) or Path(path).suffix.lower() in READERS.keys() | OTHER_SUFFIXES


def _read_file(file: Path) -> list[Row]:
    packed, kind = file.suffix == ".gz", _kind(file)
    if kind not in READERS:
        raise ValueError(f"{str(file)!r} has the suffix {''.join(file.suffixes)!r}; {FORMATS}")
    try:
        content = _unpacked(file.read_bytes()) if packed else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"the data file {str(file)!r} cannot be read: {error}") from error
    if not content.strip():
        raise ValueError(f"the data file {str(file)!r} is empty: give a file with at least one row")
    return READERS[kind](content, str(file))


def _kind(file: Path) -> str:
    return file.with_suffix("").suffix if file.suffix == ".gz" else file.suffix


def _unpacked(content: bytes) -> bytes:
    limit = FREE_BYTES + MAX_GROWTH * len(content)
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
        found = packed.read(limit + 1)
    if len(found) > limit:
        raise EOFError(f"its {len(content)} bytes unpack to more than {limit}: unpack it yourself, if that is meant")
    return found


def _decode(content: bytes, file: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{file}, line {line}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


def _read_json(content: bytes, file: str) -> list[Row]:
    try:
        loaded = _parse(_decode(content, file), file)
    except json.JSONDecodeError as error:
        hint = "; one object a line is JSON lines: name the file .jsonl" if error.msg == "Extra data" else ""
        raise ValueError(
            f"{file}, line {error.lineno}, column {error.colno}: broken JSON ({error.msg}){hint}"
        ) from error
    if not isinstance(loaded, list):
        raise ValueError(f"{file} holds a JSON {type(loaded).__name__}; it must hold a list of objects or of strings")
    return [_object(item, f"{file}, row {i}") for i, item in enumerate(loaded, start=1)]


def _read_jsonl(content: bytes, file: str) -> list[Row]:
    rows = []
    # Not str.splitlines, which also breaks at characters that JSON allows inside a string.
    for number, line in enumerate(_decode(content, file).split("\n"), start=1):
        if line.strip():
            try:
                rows.append(_object(_parse(line, f"{file}, line {number}"), f"{file}, line {number}"))
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number}, column {error.colno}: broken JSON ({error.msg})") from error
    return rows


def _parse(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except json.JSONDecodeError:
        raise  # who knows the file's lines says where
    except ValueError as error:
        # What Python says of long numbers ends in advice to programmers.
        raise ValueError(f"{where}: {str(error).split(';')[0]}") from error


def _object(item: Any, where: str) -> Row:
    if isinstance(item, str):
        return {"prompt": item}
    if not isinstance(item, dict):
        raise ValueError(f"{where} is {item!r:.60} ({type(item).__name__}); every row must be an object or a string")
    return item


def _read_csv(content: bytes, file: str) -> list[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), len(content)))  # a long text is no broken table
    reader = csv.DictReader(io.StringIO(_decode(content, file), newline=""), strict=True)
    rows = []
    try:
        twice = [name for name, count in Counter(reader.fieldnames or []).items() if name and count > 1]
        if twice:
            raise ValueError(f"{file}, line 1: the column {twice[0]!r:.80} stands twice in the header; rename one")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{file}, line {reader.line_num}: the row does not have the header's "
                    f"{len(reader.fieldnames or [])} fields; quote fields that hold commas or line breaks"
                )
            # A nameless column is the index that a table was saved with.
            rows.append({name: value for name, value in row.items() if name})
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.reader.line_num}: broken CSV ({error})") from error
    return rows


def _read_parquet(content: bytes, file: str) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        source = pyarrow.BufferReader(content)
        return pyarrow.parquet.read_table(source, page_checksum_verification=True).to_pylist()
    # Broken bytes inside come as all of these.
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the data file {file!r} is not a readable parquet file: {reason}") from error


READERS: dict[str, Callable[[bytes, str], list[Row]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}

FORMATS = f"data files end in {', '.join(READERS)}, each plain or with .gz"
