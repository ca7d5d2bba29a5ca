"""Completions of `predict` as JSONL."""

import json
from pathlib import Path
from typing import Any, final

import lightning as L

from klqlit.algorithms.comparison import Scored
from klqlit.files import replace_json
from klqlit.judges.matching import prompt_id
from klqlit.ranks import everywhere


@final
class CompletionWriter(L.Callback):
    """Writes ``{"id", "prompt", "completion", "ended", "score", ..., "columns"}`` rows in the order of the prompts.

    Args:
        path: the file to write. It appears, or replaces an older one, complete.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._rows: list[dict[str, Any]] = []

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._rows = []

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        assert isinstance(outputs, Scored), "predict is for modules with a policy"
        self._rows += as_rows(outputs)

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rows = interleave(everywhere(self._rows))
        if trainer.is_global_zero:
            lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
            replace_json(self.path, "".join(lines))
            print(f"{len(rows)} completions written to {self.path}")


def as_rows(scored: Scored) -> list[dict[str, Any]]:
    """One dict a completion."""
    completions = scored.completions
    rows = []
    for i, prompt in enumerate(completions.prompts):
        columns = completions.columns_of(i)
        row = {
            "id": prompt_id(prompt, columns.get("id")),
            "prompt": prompt,
            "completion": completions.completions[i],
            "ended": bool(completions.ended[i]),
            "score": float(scored.scores[i]),
        }
        if scored.gold is not None:
            row["gold"] = float(scored.gold[i])
        rows.append(row | {"columns": columns})
    return rows


def interleave(parts: list[list[Any]]) -> list[Any]:
    """Rank r holds prompts r, r + n, r + 2n, ...: back in order."""
    longest = max(len(part) for part in parts)
    return [part[i] for i in range(longest) for part in parts if i < len(part)]
