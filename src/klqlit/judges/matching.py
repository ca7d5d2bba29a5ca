"""Completions of two sides, paired by prompt."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from klqlit.data.reading import named, read_rows
from klqlit.judges.records import Pair

KNOWN = {"id", "prompt", "completion", "ended", "score", "gold", "columns"}
"""What a row of completions says of itself; anything else in it is a column of the prompt's row."""
HUMAN = ("completion", "chosen")
"""Columns that may hold a dataset's own response; the first there is counts."""


@final
@dataclass(kw_only=True, slots=True, frozen=True)
class Response:
    """One side's completion of a prompt.

    Attributes:
        id: of the prompt.
        prompt: the prompt's text.
        text: the completion, possibly empty.
        ended: False where the length limit cut it.
        columns: further columns of the prompt's row.
    """

    id: str
    prompt: str
    text: str
    ended: bool = True
    columns: Mapping[str, Any] = field(default_factory=dict)


@final
@dataclass(kw_only=True, slots=True, frozen=True)
class Matching:
    """Two sides' completions side by side.

    Attributes:
        pairs: in the order of side A.
        only_in_a: completions of A for whose prompt B has none, or fewer.
        only_in_b: likewise of B.
        duplicate_prompts: prompts that stand in several pairs.
    """

    pairs: list[Pair]
    only_in_a: list[Response]
    only_in_b: list[Response]
    duplicate_prompts: int


def prompt_id(prompt: str, own: Any = None) -> str:
    """A prompt's own id where it has one, else the first 16 hexadecimal digits of SHA-256 of its text."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16] if own is None else str(own)


def read_completions(path: str | Path) -> list[Response]:
    """The completions in a file.

    Args:
        path: JSON lines (or .json, .csv, .parquet; each plain or .gz) with at least `prompt` and `completion`. `id`,
            `ended` and `columns` are read where they stand; `predict` writes them all.

    Raises:
        ValueError: the file is missing, empty or broken, lacks a column, or gives one id to two prompts; the message
            names file and row.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no file of completions {str(path)!r}")
    responses = [_response(row, f"{path}, row {i}") for i, row in enumerate(read_rows(str(path)), start=1)]
    _check_ids(responses, f"{path} gives")
    return responses


def human_responses(responses: Sequence[Response]) -> list[Response]:
    """The dataset's own responses to another side's prompts: the column `completion`, else `chosen`.

    Raises:
        ValueError: a row has neither.
    """
    return [_human(response) for response in responses]


def match(a: Sequence[Response], b: Sequence[Response]) -> Matching:
    """Completions of the same prompts, whatever their order.

    Prompts are the same where their ids are; where one of the sides has no ids of its own, where their texts are. The
    k-th completion of a prompt on one side belongs to the k-th on the other.

    Raises:
        ValueError: no prompt stands on both sides, or an id means another prompt on each.
    """
    key = _key(a, b)
    waiting: dict[str, list[Response]] = defaultdict(list)
    for response in reversed(b):
        waiting[key(response)].append(response)
    pairs, only_in_a = [], []
    for response in a:
        others = waiting[key(response)]
        if others:
            pairs.append(_pair(key(response), response, others.pop()))
        else:
            only_in_a.append(response)
    if not pairs:
        raise ValueError(
            "the two sides have no prompt in common: give completions of the same prompts. The first prompt of a: "
            f"{a[0].prompt[:80]!r}; of b: {b[0].prompt[:80]!r}"
        )
    return Matching(
        pairs=pairs,
        only_in_a=only_in_a,
        only_in_b=[response for others in waiting.values() for response in reversed(others)],
        duplicate_prompts=sum(count > 1 for count in Counter(pair.id for pair in pairs).values()),
    )


def _key(a: Sequence[Response], b: Sequence[Response]) -> Callable[[Response], str]:
    if all(any(response.id != prompt_id(response.prompt) for response in side) for side in (a, b)):
        _check_ids([*a, *b], "the two sides give")
        return lambda response: response.id
    return lambda response: prompt_id(response.prompt)


def _pair(key: str, a: Response, b: Response) -> Pair:
    # What the sides do not agree on is no column of the prompt's row.
    columns = {
        name: value
        for name, value in {**b.columns, **a.columns}.items()
        if name not in b.columns or b.columns[name] == value
    }
    return Pair(id=key, prompt=a.prompt, a=a.text, b=b.text, a_ended=a.ended, b_ended=b.ended, columns=columns)


def _check_ids(responses: Iterable[Response], who: str) -> None:
    prompts: dict[str, str] = {}
    for response in responses:
        if prompts.setdefault(response.id, response.prompt) != response.prompt:
            raise ValueError(
                f"{who} the id {response.id!r} to two prompts, {prompts[response.id][:60]!r} and "
                f"{response.prompt[:60]!r}: give each prompt an id of its own, or leave the column out"
            )


def _response(row: Mapping[str, Any], where: str) -> Response:
    missing = [name for name in ("prompt", "completion") if name not in row]
    if missing:
        raise ValueError(f"{where} lacks {' and '.join(map(repr, missing))}; it has {named(row)}")
    prompt, completion = (_text(row[name], f"{where}: {name!r}") for name in ("prompt", "completion"))
    ended = {"true": True, "false": False}.get(str(row.get("ended", True)).lower())
    if ended is None:
        raise ValueError(f"{where}: 'ended' is {row['ended']!r:.60}; it must be true or false")
    columns = row.get("columns") or {}
    if not isinstance(columns, Mapping):
        raise ValueError(f"{where}: 'columns' holds {columns!r:.60}; it must hold an object")
    others = {name: value for name, value in row.items() if name not in KNOWN}
    return Response(
        id=prompt_id(prompt, row.get("id")), prompt=prompt, text=completion, ended=ended, columns={**others, **columns}
    )


def _human(response: Response) -> Response:
    name = next((name for name in HUMAN if response.columns.get(name) is not None), None)
    if name is None:
        columns = ", ".join(map(repr, response.columns)) or "it has none"
        raise ValueError(
            f"the dataset's response to {response.prompt[:60]!r} is not known: the other side's row has no further "
            f"column `chosen` or `completion` ({columns}). Give that side as a run's folder whose data has responses, "
            "or add the column to its file"
        )
    text = _text(response.columns[name], f"the dataset's {name!r}")
    return Response(id=response.id, prompt=response.prompt, text=text, columns=response.columns)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} holds {value!r:.60} ({type(value).__name__}); it must hold text")
    # Half a surrogate pair, as careless cutting leaves it, fits in no file and no request.
    return value.encode("utf-8", "replace").decode()
