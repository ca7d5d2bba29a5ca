"""Everything that a report is about, found and read."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from klqlit.reports.comparisons import Judged, Side, read_comparison
from klqlit.reports.groups import Task, group_by_task
from klqlit.reports.runs import Run, read_run

SKIPPED = ("checkpoints", "model", "figures")
"""Folders in which no run can be, and there may be much."""


@dataclass(kw_only=True, slots=True)
class Experiment:
    """Everything that the report is about.

    Attributes:
        tasks: with aligned runs, by name.
        others: fine-tuning, reward models, trials and whatever else was found.
        comparisons: by name.
        labels: the variant of each aligned run, by its name.
        left_out: aligned runs that no mean counts; the tasks' notes say why.
    """

    tasks: list[Task]
    others: list[Run]
    comparisons: list[Judged]
    labels: dict[str, str]
    left_out: list[Run]

    @property
    def runs(self) -> list[Run]:
        """Aligned runs of all tasks."""
        return [run for task in self.tasks for run in task.runs]

    def run_of(self, judged: Judged, side: Side) -> Run | None:
        """The run whose completions a side of a comparison is; None where the report does not have it."""
        named = judged.side(side).get("run")
        if not named:
            return None
        wanted = Path(str(named))
        if wanted.is_dir():
            same = [run for run in self.runs if run.folder.resolve() == wanted.resolve()]
        else:
            # The folders were moved, or are named from elsewhere: the end of the path must do, where it is clear.
            ends = range(len(wanted.parts), 1, -1)
            matches = ([run for run in self.runs if run.folder.resolve().parts[-n:] == wanted.parts[-n:]] for n in ends)
            same = next((found for found in matches if found), [])
        return same[0] if len(same) == 1 else None


@dataclass(kw_only=True, slots=True)
class _Found:
    """Folders of runs and comparisons."""

    runs: list[Path] = field(default_factory=list)
    comparisons: list[Path] = field(default_factory=list)


def read_experiment(paths: Sequence[Path]) -> Experiment:
    """Read all runs and comparisons in the given folders.

    Raises:
        ValueError: a folder does not exist, or nothing was found.
    """
    found = _find(paths)
    if not found.runs and not found.comparisons:
        where = ", ".join(str(path) for path in paths)
        raise ValueError(
            f"there is nothing to report in {where}: a run's folder holds config.yaml and metrics.jsonl, and "
            "`python -m klqlit fit --config FILE --run_dir FOLDER` makes one; a comparison's holds judged.json, and "
            "`python -m klqlit judge` makes one"
        )
    names = _names([*found.runs, *found.comparisons])
    runs = [read_run(folder, names[folder]) for folder in found.runs]
    comparisons = [read_comparison(folder, names[folder]) for folder in found.comparisons]
    aligned = [run for run in runs if run.aligned and not run.trial]
    tasks, labels = group_by_task(aligned)
    others = [run for run in runs if not run.aligned or run.trial]
    counted = {run.name for task in tasks for run in task.runs}
    left_out = [run for run in aligned if run.name not in counted]
    return Experiment(tasks=tasks, others=others, comparisons=comparisons, labels=labels, left_out=left_out)


def _find(paths: Sequence[Path]) -> _Found:
    found = _Found()
    seen: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"there is no folder {str(path)!r}: give the folder of a run, of a comparison, or of many")
        for folder, inner, files in os.walk(path, followlinks=True):
            here = Path(folder)
            # A folder may be named twice, and links may lead in a circle.
            if here.resolve() in seen:
                inner.clear()
                continue
            seen.add(here.resolve())
            inner[:] = sorted(name for name in inner if name not in SKIPPED)
            if {"config.yaml", "metrics.jsonl"} & set(files):
                found.runs.append(here)
            if "judged.json" in files:
                found.comparisons.append(here)
    return found


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """Folders without the path that all share; one alone by its last two parts."""
    resolved = {folder: folder.resolve() for folder in folders}
    common = Path(os.path.commonpath([path.parent for path in resolved.values()]))
    return {folder: str(path.relative_to(common)) for folder, path in resolved.items()}
