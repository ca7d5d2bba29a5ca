"""Training and validation rows of which no prompt stands in both."""

import hashlib
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import final

from lightning.pytorch.utilities import rank_zero_info

from klqlit.data.reading import read_rows
from klqlit.data.source import Row, Split


@final
class SplitRows:
    """Rows of a training file and of a validation file, or of one file held apart by prompt.

    Without a validation file the prompts whose hash is smallest are held out, whatever the order of the file; with
    one, training rows whose prompt stands in it are left out, and their number is reported.

    Args:
        path: training rows: a file or a data set's name on the hub.
        data_dir: subdirectory on the hub, for both.
        validation_path: validation rows likewise; None to hold some of the training rows out. A name on the hub means
            its validation (or test) split.
        validation_rows: rows to hold out; None for one in twenty, at most 1,000. Rows of one prompt stay together, so
            it can be a few more.
        formatted: turns the raw rows of a file into rows with a `prompt`; also told the file's name.

    Raises:
        ValueError: `validation_rows` is not positive, or given beside `validation_path`.
    """

    def __init__(
        self,
        path: str,
        *,
        data_dir: str | None,
        validation_path: str | None,
        validation_rows: int | None,
        formatted: Callable[[list[Row], str], list[Row]],
    ) -> None:
        if validation_rows is not None and validation_path is not None:
            raise ValueError(
                f"validation_rows={validation_rows} and validation_path={validation_path!r} exclude each other: the "
                "file is used whole; leave one of them out"
            )
        if validation_rows is not None and validation_rows < 1:
            raise ValueError(f"validation_rows={validation_rows} must be positive")
        self._path, self._data_dir, self._validation_path = path, data_dir, validation_path
        self._validation_rows = validation_rows
        self._formatted = formatted

    def rows(self, split: Split) -> list[Row]:
        """All rows of a split, in the order of the file."""
        return self._splits[split]

    @cached_property
    def _splits(self) -> dict[Split, list[Row]]:
        rows = self._read(self._path, "train")
        if self._validation_path is None:
            wanted = min(1000, max(1, len(rows) // 20)) if self._validation_rows is None else self._validation_rows
            held = _held_out(rows, wanted)
            validation = [row for row in rows if row["prompt"] in held]
        else:
            validation = self._read(self._validation_path, "validation")
            held = {row["prompt"] for row in validation}
        train = [row for row in rows if row["prompt"] not in held]
        if not train:
            raise ValueError(
                f"no training rows are left of the {len(rows)} in {self._path!r} once the prompts of the validation "
                "rows are taken out: give more rows, or lower validation_rows"
            )
        if self._validation_path is not None and len(train) < len(rows):
            rank_zero_info(
                f"{self._path}: {len(rows) - len(train)} of {len(rows)} training rows left out, because their prompt "
                f"stands in {self._validation_path}"
            )
        return {"train": train, "validation": validation}

    def _read(self, path: str, split: Split) -> list[Row]:
        return self._formatted(read_rows(path, split=split, data_dir=self._data_dir), path)


def _held_out(rows: list[Row], wanted: int) -> set[str]:
    """The prompts of smallest hash that together have at least `wanted` rows."""
    counts = Counter(row["prompt"] for row in rows)
    held: set[str] = set()
    for prompt in sorted(counts, key=lambda prompt: hashlib.sha256(prompt.encode()).digest()):
        if wanted <= 0:
            break
        held.add(prompt)
        wanted -= counts[prompt]
    return held
