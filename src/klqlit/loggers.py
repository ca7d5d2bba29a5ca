"""Metrics as JSON lines: easy to read from a script, and safe to continue."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, final

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn

from klqlit.files import replace_json


@final
class StepRows:
    """A file of ``{"step": ..., ...}`` lines that only grows.

    A run that continues from a checkpoint first drops the rows of steps it takes again, so that none stands twice, and
    lines that a crash or a disk has spoilt.

    Args:
        path: the file.
        purge_step: rows of this step and later ones are dropped; by default those of the first step that is added.
    """

    def __init__(self, path: Path, purge_step: int | float | None = None) -> None:
        self.path = path
        self.purge_step = purge_step
        self._continued = False

    def append(self, step: int, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows of a step."""
        if not self._continued:
            self._drop_from(step if self.purge_step is None else self.purge_step)
            self._continued = True
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"step": step} | row, ensure_ascii=False) + "\n" for row in rows)

    def _drop_from(self, step: int | float) -> None:
        lines = self._lines()
        steps = [_step_of(line) for line in lines]
        if spoilt := steps.count(None):
            rank_zero_warn(f"{spoilt} of {len(lines)} lines of {self.path} cannot be read and are left out")
        kept = [line for line, at in zip(lines, steps, strict=True) if at is not None and at < step]
        replace_json(self.path, "".join(line + "\n" for line in kept))

    def _lines(self) -> list[str]:
        if not self.path.exists():
            return []
        # What follows the last line end was torn off by a crash.
        return self.path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1]


def _step_of(line: str) -> int | float | None:
    """The step of a row; None where the line is no row."""
    try:
        line.encode()  # fails where the bytes were no UTF-8
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if isinstance(step, int | float) and not isinstance(step, bool) else None


@final
class JSONLinesLogger(Logger):
    """Appends ``{"step": ..., metric: value, ...}`` to a file.

    Args:
        path: the file.
        purge_step: where a fit goes on from, as in Lightning's TensorBoardLogger: rows of this step and later ones are
            dropped, since they come again. By default all are kept: a validation may begin at step 0 too.
    """

    def __init__(self, path: str, purge_step: int | None = None) -> None:
        super().__init__()
        self._rows = StepRows(Path(path), math.inf if purge_step is None else purge_step)

    @property
    def name(self) -> str:
        return self._rows.path.stem

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's configuration stands in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self._rows.append(step, [metrics])
