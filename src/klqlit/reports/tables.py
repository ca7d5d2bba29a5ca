"""Tables of what came out: ends of runs, paired differences, shares of the way to the optimum, times."""

import re

from klqlit.reports.blocks import Table
from klqlit.reports.figures.curves import stage_seconds
from klqlit.reports.figures.frontier import optima, start
from klqlit.reports.groups import Cell, Task, plain_tau
from klqlit.reports.intervals import Interval, over_seeds, plain
from klqlit.reports.reading import Row, number
from klqlit.reports.runs import STAGES

COLUMNS = {
    "objective/J": "J",
    "reward/score": "score",
    "reward/gold": "gold score",
    "kl/sequence": "KL, nats",
    "win_rate/score": "wins by score",
    "win_rate/gold": "wins by gold",
}
NONE = "–"


def summary(task: Task) -> Table:
    """A row a variant and tau: means at the end, with intervals over seeds."""
    columns = COLUMNS | judged_columns(task)
    names = [name for name in columns if any(cell.final(name) for cell in task.cells)]
    rows = [
        [
            cell.variant + (" (unfinished)" if cell.unfinished else ""),
            plain_tau(cell.tau),
            str(len(cell.runs)),
            *(_shown(cell.final(name), name) for name in names),
        ]
        for tau in task.taus
        for cell in task.at(tau)
    ]
    before = [start(task.runs, name) for name in names]
    if any(value is not None for value in before):
        rows.append(["reference", NONE, NONE, *(NONE if value is None else plain(value) for value in before)])
    return Table(
        title="At the end of training",
        headings=["", "τ", "seeds", *(columns[name] for name in names)],
        rows=rows,
        note=_where_measured(task),
    )


def judged_columns(task: Task) -> dict[str, str]:
    """Win rates that `JudgedWinRate` logged during training, under the names that it was given."""
    logged = {name for run in task.runs for row in run.metrics for name in row}
    found = sorted(match[1] for name in logged if (match := re.fullmatch(r"val/([^/]+)/win_rate", name)))
    return {f"{judge}/win_rate": f"wins by {judge}" for judge in found}


def _where_measured(task: Task) -> str:
    exact = all(run.optimum for run in task.runs)
    held_out = all(run.validated for run in task.runs)
    where = (
        "Computed exactly from the policy, nothing is sampled."
        if exact
        else "On held-out prompts, at the last validation."
        if held_out
        else "At the last validation on held-out prompts; runs that were never validated: in their last phase."
    )
    return f"{where} Mean ± 95 % interval (Student's t) over seeds; one seed has none. Wins are against the reference."


def _shown(interval: Interval | None, name: str) -> str:
    if interval is None:
        return NONE
    return percent_with_error(interval) if "win_rate" in name else str(interval)


def percent(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.1f} %"


def percent_with_error(interval: Interval) -> str:
    """Likewise with its error."""
    error = "" if interval.half is None else f" ± {100 * interval.half:.1f}"
    return f"{100 * interval.mean:.1f}{error} %"


def differences(task: Task) -> list[Table]:
    """The first variant less each other, paired by seed; none where no two share seeds."""
    return [table for other in task.variants[1:] if (table := _difference(task, task.variants[0], other)) is not None]


def _difference(task: Task, one: str, other: str) -> Table | None:
    names = [name for name in COLUMNS if not name.startswith("win_rate") and any(c.final(name) for c in task.cells)]
    rows = []
    for tau in task.taus:
        cells = {cell.variant: cell for cell in task.at(tau)}
        if one in cells and other in cells:
            pairs = [paired(cells[one], cells[other], name) for name in names]
            counts = [interval.count for interval in pairs if interval]
            if counts:
                rows.append([plain_tau(tau), str(max(counts)), *(str(i) if i else NONE for i in pairs)])
    if not rows:
        return None
    return Table(
        title=f"{one} − {other}, paired by seed",
        headings=["τ", "pairs", *(COLUMNS[name] for name in names)],
        rows=rows,
        note="An interval that holds 0 does not tell the two apart.",
    )


def paired(one: Cell, other: Cell, name: str) -> Interval | None:
    """Mean difference over the seeds that both have."""
    first, second = one.by_seed(name), other.by_seed(name)
    shared = [seed for seed in first if seed in second]
    return over_seeds([first[seed] - second[seed] for seed in shared]) if shared else None


def optimum_table(task: Task) -> Table | None:
    """How far each variant goes from the reference to the optimum; None where the optimum is unknown."""
    best = optima(task.runs)
    rows = []
    for tau in task.taus:
        for cell in task.at(tau):
            shares = [
                share
                for run in cell.runs
                if (share := _share_closed(run.optimum, run.final("objective/J"))) is not None
            ]
            if tau in best and shares:
                closed = over_seeds(shares)
                kl, score = best[tau]
                cells = [cell.variant, plain_tau(tau), str(len(shares)), plain(score.mean - tau * kl.mean)]
                rows.append([*cells, str(cell.final("objective/J") or NONE), percent_with_error(closed)])
    if not rows:
        return None
    return Table(
        title="How much of the way to the optimum",
        headings=["", "τ", "seeds", "J*", "J", "share of J* − J(reference)"],
        rows=rows,
        note="Each seed is a problem of its own, so that the spread of J is that of the problems; the share is not.",
    )


def _share_closed(optimum: Row, objective: float | None) -> float | None:
    best, first = number(optimum.get("J")), number(optimum.get("reference"))
    if best is None or first is None or objective is None or best == first:
        return None
    return (objective - first) / (best - first)


def times(task: Task) -> Table | None:
    """Seconds an update, by stage; None where none were taken."""
    rows = []
    for tau in task.taus:
        for cell in task.at(tau):
            parts = [stage_seconds(cell, stage) for stage in STAGES]
            if all(parts):
                total = over_seeds(
                    [sum(_seconds(run.series(f"time/{s}")) for s in STAGES) for run in cell.runs if run.seconds]
                )
                devices = sorted({device for run in cell.runs if (device := run.device)})
                shown = [cell.variant, plain_tau(cell.tau), *map(str, parts), str(total), ", ".join(devices) or NONE]
                rows.append(shown)
    if not rows:
        return None
    return Table(
        title="Seconds an update",
        headings=["", "τ", *STAGES, "total", "device"],
        rows=rows,
        note="Means over all updates and seeds, of the first rank. Generation samples; scoring is reward, reference "
        "and critic; optimization is all passes over the phase. Validation is not in it. Times of runs that shared a "
        "machine with others compare only with each other.",
    )


def _seconds(values: dict[int, float]) -> float:
    return sum(values.values()) / len(values) if values else 0.0
