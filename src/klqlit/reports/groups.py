"""Runs in the order in which they answer a question: by task, algorithm and tau, with seeds side by side."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from klqlit.reports.intervals import Interval, over_seeds
from klqlit.reports.runs import Run
from klqlit.reports.settings import separating, short

FIRST = ("KLQ", "PPO")
LONGEST_LABEL = 32


@dataclass(kw_only=True, slots=True)
class Cell:
    """Runs of one task, algorithm and tau: one a seed.

    Attributes:
        variant: the algorithm, with the settings that tell it from others of its class.
        tau: KL coefficient; None where it is unknown.
        runs: by ascending seed.
        unfinished: whether some of them have not come to their end.
    """

    variant: str
    tau: float | None
    runs: list[Run]
    unfinished: bool

    def final(self, name: str) -> Interval | None:
        """A metric at the end over seeds; None where no run has it."""
        values = [value for run in self.runs if (value := run.final(name)) is not None]
        return over_seeds(values) if values else None

    def by_seed(self, name: str) -> dict[int | None, float]:
        """A metric at the end of each run."""
        return {run.seed: value for run in self.runs if (value := run.final(name)) is not None}


@dataclass(kw_only=True, slots=True)
class Task:
    """All aligned runs of a task.

    Attributes:
        name: of the task.
        cells: by variant, then tau.
        variants: KLQ first, then PPO.
        taus: ascending; None where unknown.
        notes: what labels stand for; what was left out, and why.
    """

    name: str
    cells: list[Cell]
    variants: list[str]
    taus: list[float | None]
    notes: list[str]

    def at(self, tau: float | None) -> list[Cell]:
        """Cells of a tau, in the order of the variants."""
        return [cell for cell in self.cells if cell.tau == tau]

    def of(self, variant: str) -> list[Cell]:
        """Cells of a variant by ascending tau."""
        return [cell for cell in self.cells if cell.variant == variant]

    @property
    def runs(self) -> list[Run]:
        """Of all cells."""
        return [run for cell in self.cells for run in cell.runs]

    def variant_of(self, run: Run) -> str:
        """The variant of one of the task's runs."""
        return next(cell.variant for cell in self.cells if any(run is one for one in cell.runs))


def group_by_task(runs: Sequence[Run]) -> tuple[list[Task], dict[str, str]]:
    """Tasks by name, and the variant of each run by its name."""
    by_task = {name: [run for run in runs if run.task == name] for name in sorted({run.task for run in runs})}
    labels = {name: label for group in by_task.values() for name, label in _labels(group).items()}
    tasks = [_task(name, group, labels) for name, group in by_task.items()]
    return tasks, {name: brief for name, (brief, _) in labels.items()}


def _labels(runs: Sequence[Run]) -> dict[str, tuple[str, str]]:
    """What each run of a task is called, by its name: briefly, and with all that tells it from others of its class."""
    by_algorithm: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_algorithm[run.algorithm].append(run)
    found: dict[str, tuple[str, str]] = {}
    for algorithm, group in by_algorithm.items():
        own = [run for run in group if "algorithm" not in run.label]
        names = separating((run.tau, run.seed, run.settings) for run in own)
        whole = {run.name: _label(algorithm, run, names) for run in own}
        brief = _brief(algorithm, sorted(set(whole.values())))
        found |= {name: (brief[label], label) for name, label in whole.items()}
    return found | {run.name: (str(run.label["algorithm"]),) * 2 for run in runs if "algorithm" in run.label}


def _label(algorithm: str, run: Run, names: Sequence[str]) -> str:
    parts = [f"{short(name)} {_value(run.settings[name])}" for name in names if name in run.settings]
    return ", ".join([algorithm, *parts])


def _brief(algorithm: str, labels: Sequence[str]) -> dict[str, str]:
    """The labels themselves, or numbers where one of them is too long for a legend."""
    if all(len(label) <= LONGEST_LABEL for label in labels):
        return {label: label for label in labels}
    return {label: f"{algorithm} no. {i}" for i, label in enumerate(labels, 1)}


def _value(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.rpartition(".")[2] if "." in text and not isinstance(value, int | float) else text


def _task(name: str, runs: Sequence[Run], labels: dict[str, tuple[str, str]]) -> Task:
    notes = [f"{label} is {meaning}" for label, meaning in sorted({labels[r.name] for r in runs}) if label != meaning]
    groups: dict[tuple[str, float | None], list[Run]] = defaultdict(list)
    for run in runs:
        groups[labels[run.name][0], run.tau].append(run)
    cells = [_cell(variant, tau, group, notes) for (variant, tau), group in groups.items()]
    variants = sorted({cell.variant for cell in cells}, key=_rank)
    taus = sorted({cell.tau for cell in cells}, key=lambda tau: (tau is None, tau or 0.0))
    cells.sort(key=lambda cell: (variants.index(cell.variant), taus.index(cell.tau)))
    return Task(name=name, cells=cells, variants=variants, taus=taus, notes=notes)


def _rank(variant: str) -> tuple[int, str]:
    names = [i for i, first in enumerate(FIRST) if variant.startswith(first)]
    return (names[0] if names else len(FIRST), variant)


def _cell(variant: str, tau: float | None, runs: Sequence[Run], notes: list[str]) -> Cell:
    """One run a seed: finished ones where there are any, and of several the one that went furthest."""
    title = cell_title(variant, tau)
    finished = [run for run in runs if run.finished]
    if finished and len(finished) < len(runs):
        # Runs that diverged are among them: a mean over the others is a mean over those that did not.
        names = "; ".join(f"{run.name} ({run.status})" for run in runs if not run.finished)
        notes.append(f"{title}: left out of means and figures, since they did not finish: {names}")
    chosen: dict[int | None, Run] = {}
    for run in sorted(finished or runs, key=lambda run: -run.last_step):
        if run.seed not in chosen:
            chosen[run.seed] = run
        else:
            notes.append(f"{title}: {run.name} left out, since {chosen[run.seed].name} has the same seed {run.seed}")
    ordered = sorted(chosen.values(), key=lambda run: (run.seed is None, run.seed or 0))
    return Cell(variant=variant, tau=tau, runs=ordered, unfinished=not finished)


def cell_title(variant: str, tau: float | None) -> str:
    """A cell in words."""
    return variant if tau is None else f"{variant}, τ = {plain_tau(tau)}"


def plain_tau(tau: float | None) -> str:
    """tau as it was given."""
    return "unknown" if tau is None else f"{tau:g}"
