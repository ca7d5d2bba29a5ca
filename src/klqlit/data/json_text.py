"""JSON as data files hold it, read strictly."""

import json
from typing import Any


def parse_json(text: str) -> Any:
    """The value of a JSON text. Half a surrogate pair, which no file and no request can hold, becomes "?".

    `NaN` and `Infinity`, as Python writes them, are read as numbers.

    Raises:
        JSONDecodeError: the text is broken.
        ValueError: it names a column twice, is nested without end, or holds a number of thousands of digits.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("its lists and objects are nested too deep to be rows of text") from error
    # An escape is the only way in: decoded text has none.
    return _whole(value) if "\\ud" in text or "\\uD" in text else value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the column {twice!r:.80} stands twice in one object")
    return found


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {_whole(name): _whole(item) for name, item in value.items()}
    return value
