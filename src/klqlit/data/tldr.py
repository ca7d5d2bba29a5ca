"""TL;DR: summaries of Reddit posts (Stiennon et al., 2020, "Learning to summarize from human feedback")."""

from typing import final

from klqlit.data.columns import TEXTS, check_columns, named_texts
from klqlit.data.shortening import longest
from klqlit.data.source import Row, Source, Split, TokenCounter
from klqlit.data.splits import SplitRows

POST = "POST: "
TAIL = "\n\nTL;DR:"


@final
class TLDRSummaries(Source):
    r"""Posts as `SUBREDDIT: r/..\n\nTITLE: ..\n\nPOST: ..\n\nTL;DR:`, completions with exactly one leading space.

    Reads prompt and completion (trl-lib/tldr), prompt, chosen and rejected (trl-lib/tldr-preference), or prompts alone.

    Args:
        path: a file (.json, .jsonl, .csv or .parquet, plain or .gz) or a data set's name on the hub.
        columns: the file's column for each of `prompt`, `completion`, `chosen` and `rejected` that is called something
            else there, as in `{"prompt": "query", "completion": "reference_responses"}`.
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
        """The prompt with the end of its post cut off.

        Whole lines go first, from the end. Where not even the post's first line fits, words go from the end of that
        line; where the title alone is too long, the post goes and words from the end of the title. "TL;DR:" stays.

        Raises:
            ValueError: `limit` does not even hold the tail.
        """
        if count(prompt) <= limit:
            return prompt
        head, post, body = prompt.removesuffix(TAIL).partition(POST)
        body = body.lstrip()
        first = body.split("\n", 1)[0]
        for start, whole, mark in ((head + post, body, "\n"), (head + post, first, " "), ("", head.rstrip(), " ")):
            pieces = whole.split(mark)
            # One piece is the least worth keeping: an empty post is no post.
            kept = longest(len(pieces) - 1, lambda k: count(start + mark.join(pieces[: k + 1]) + TAIL) <= limit)  # noqa: B023
            if kept is not None:
                return start + mark.join(pieces[: kept + 1]).rstrip() + TAIL
        raise ValueError(
            f"max_prompt_tokens={limit} leaves no room for {TAIL.strip()!r} and a word before it: raise it"
        )

    def _format(self, rows: list[Row], path: str) -> list[Row]:
        return [self._row(row, f"{path}, row {i}") for i, row in enumerate(rows, start=1)]

    def _row(self, row: Row, where: str) -> Row:
        formatted = named_texts(row, self._columns, where)
        prompt = formatted["prompt"].rstrip()
        if POST not in prompt or not prompt.endswith(TAIL):
            raise ValueError(
                f"{where}: a TL;DR prompt has {POST.strip()!r} before the post and ends in {TAIL.strip()!r} after an "
                f"empty line, but this one ends in {prompt[-30:]!r}; for prompts of another format use TableSource"
            )
        completions = {name: " " + formatted[name].strip() for name in TEXTS[1:] if name in formatted}
        return formatted | {"prompt": prompt} | completions
