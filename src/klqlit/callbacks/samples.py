"""Completions that a person can read, during the run."""

import json
from pathlib import Path
from typing import Any, final

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.table import Table
from rich.text import Text

from klqlit.algorithms.comparison import Comparison
from klqlit.callbacks.fast_dev_run import is_fast_dev_run
from klqlit.loggers import StepRows
from klqlit.printable import printable


@final
class SampleTable(L.Callback):
    """After each validation: prompt, the reference's completion, the policy's, and their scores.

    The table goes to the terminal and to TensorBoard, and every row of it to ``samples.jsonl`` in the run's folder.

    Args:
        rows: prompts shown, always the same ones.
        console: print the table too.

    Raises:
        ValueError: `rows` is not positive.
    """

    def __init__(self, rows: int = 4, console: bool = True) -> None:
        if rows < 1:
            raise ValueError(f"SampleTable rows={rows} must be at least 1; leave the callback out for no samples")
        self.rows = rows
        self.console = console
        self._samples: list[dict[str, Any]] = []
        self._file: StepRows | None = None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0 and isinstance(outputs, Comparison):
            self._samples = as_rows(outputs)[: self.rows]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._samples or not trainer.is_global_zero:
            return
        if trainer.state.fn == TrainerFn.FITTING and not is_fast_dev_run(trainer):
            self._keep(trainer)
        if self.console:
            Console().print(as_table(self._samples, f"samples at step {trainer.global_step}"))

    def _keep(self, trainer: L.Trainer) -> None:
        if self._file is None:
            self._file = StepRows(Path(trainer.default_root_dir) / "samples.jsonl")
        self._file.append(trainer.global_step, self._samples)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                # At the same step as the metrics, which Lightning counts from 0.
                logger.experiment.add_text("samples", as_markdown(self._samples), trainer.global_step - 1)


def as_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One dict a prompt, with both completions and their scores."""
    policy, reference = comparison.policy, comparison.reference
    rows = []
    for i, prompt in enumerate(policy.completions.prompts):
        row = {
            "prompt": prompt,
            "reference": reference.completions.completions[i],
            "policy": policy.completions.completions[i],
            "reference_score": float(reference.scores[i]),
            "policy_score": float(policy.scores[i]),
        }
        if policy.gold is not None and reference.gold is not None:
            row |= {"reference_gold": float(reference.gold[i]), "policy_gold": float(policy.gold[i])}
        rows.append(row)
    return rows


def as_table(rows: list[dict[str, Any]], title: str) -> Table:
    """A table for the terminal; what models wrote is shown as text, never as markup or as commands to the terminal."""
    table = Table(title=title, show_lines=True)
    for name in ("prompt", "reference", "policy"):
        table.add_column(name, overflow="fold", ratio=2)
    table.add_column("score", justify="right", no_wrap=True)
    for row in rows:
        texts = [Text(printable(row[name].strip())) for name in ("prompt", "reference", "policy")]
        table.add_row(*texts, f"{row['reference_score']:.2f} → {row['policy_score']:.2f}")
    return table


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The same for TensorBoard."""
    lines = ["| prompt | reference | policy | score |", "|---|---|---|---|"]
    for row in rows:
        cells = [
            json.dumps(row[name], ensure_ascii=False).replace("|", "\\|") for name in ("prompt", "reference", "policy")
        ]
        lines.append(f"| {' | '.join(cells)} | {row['reference_score']:.2f} → {row['policy_score']:.2f} |")
    return "\n".join(lines)
