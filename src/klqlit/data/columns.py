"""Prompts, completions or preference pairs from any table, taken as they stand."""

from typing import final

from klqlit.data.reading import text
from klqlit.data.shortening import longest
from klqlit.data.source import Row, Source, Split, TokenCounter
from klqlit.data.splits import SplitRows

TEXTS = ("prompt", "completion", "chosen", "rejected")


@final
class TableSource(Source):
    """Rows whose texts are already formatted: nothing is added to prompts or completions, not even a space.

    Args:
        path: a file (.json, .jsonl, .csv or .parquet, plain or .gz) or a data set's name on the hub.
        columns: the file's column for each of `prompt`, `completion`, `chosen` and `rejected` that is called something
            else there, as in `{"prompt": "question"}`. Other columns keep their names.
        data_dir: subdirectory on the hub.
        validation_path: validation rows; None to hold some out of `path`, by prompt.
        validation_rows: rows to hold out; None for one in twenty, at most 1,000.

    Raises:
        ValueError: `columns` names something else; for files, see `rows`.
    """

    def __init__(
        self,
        path: str,
        *,
        columns: dict[str, str] | None = None,
        data_dir: str | None = None,
        validation_path: str | None = None,
        validation_rows: int | None = None,
    ) -> None:
        self._columns = check_columns(columns)
        self._splits = SplitRows(
            path,
            data_dir=data_dir,
            validation_path=validation_path,
            validation_rows=validation_rows,
            formatted=self._format,
        )

    def rows(self, split: Split) -> list[Row]:
        return self._splits.rows(split)

    def shorten(self, prompt: str, count: TokenCounter, limit: int) -> str:
        """The end of the prompt, as many characters as fit: what the response follows is kept.

        Raises:
            ValueError: not even the last character fits.
        """
        if count(prompt) <= limit:
            return prompt
        before = longest(len(prompt) - 1, lambda k: count(prompt[-1 - k :]) <= limit)
        if before is None:
            raise ValueError(f"max_prompt_tokens={limit} does not hold the character {prompt[-1]!r}: raise it")
        return prompt[-1 - before :]

    def _format(self, rows: list[Row], path: str) -> list[Row]:
        return [named_texts(row, self._columns, f"{path}, row {i}") for i, row in enumerate(rows, start=1)]


def check_columns(columns: dict[str, str] | None) -> dict[str, str]:
    """`columns`, which may map only the names of `TEXTS`.

    Raises:
        ValueError: it maps another name.
    """
    unknown = [name for name in columns or {} if name not in TEXTS]
    if unknown:
        raise ValueError(
            f"columns maps {unknown[0]!r}, which is none of {', '.join(TEXTS)}: write our name on the left and the "
            "file's on the right; other columns are kept under their own names"
        )
    return columns or {}


def named_texts(row: Row, columns: dict[str, str], where: str) -> Row:
    """A row with its texts under our names and its other columns under theirs.

    Raises:
        ValueError: a text is missing, empty or no text; the message names row and column.
    """
    sources = {name: columns.get(name, name) for name in TEXTS}
    wanted = [name for name in TEXTS if name == "prompt" or name in columns or sources[name] in row]
    others = {name: value for name, value in row.items() if name not in sources.values() and name not in TEXTS}
    return {name: text(row, sources[name], where) for name in wanted} | others
