"""Completions of `predict` as JSONL."""

import json
from pathlib import Path
from typing import Any, final

import lightning as L
import torch.distributed as dist

from klqlit.algorithms.comparison import Scored


@final
class CompletionWriter(L.Callback):
    """Writes ``{"prompt", "completion", "ended", "score", ...}`` rows in the order of the prompts.

    Args:
        path: the file to write.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._rows: list[dict[str, Any]] = []

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        assert isinstance(outputs, Scored), "predict is for modules with a policy"
        self._rows += as_rows(outputs)

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rows = interleave(self._all_ranks())
        if trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            self.path.write_text(text, encoding="utf-8")
            print(f"{len(rows)} completions written to {self.path}")

    def _all_ranks(self) -> list[list[dict[str, Any]]]:
        if not (dist.is_available() and dist.is_initialized()):
            return [self._rows]
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, self._rows)
        return parts


def as_rows(scored: Scored) -> list[dict[str, Any]]:
    """One dict a completion."""
    completions = scored.completions
    rows = []
    for i, prompt in enumerate(completions.prompts):
        row = {
            "prompt": prompt,
            "completion": completions.completions[i],
            "ended": bool(completions.ended[i]),
            "score": float(scored.scores[i]),
        }
        rows.append(row if scored.gold is None else row | {"gold": float(scored.gold[i])})
    return rows


def interleave(parts: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rank r holds prompts r, r + n, r + 2n, ...: back in order."""
    longest = max(len(part) for part in parts)
    return [part[i] for i in range(longest) for part in parts if i < len(part)]
