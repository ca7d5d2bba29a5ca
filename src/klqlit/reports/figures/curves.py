"""Learning curves with bands over seeds, and where the time of an update goes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from klqlit.reports.figures.style import PALETTE, canvas, legend_above, look, words
from klqlit.reports.groups import Cell, Task, cell_title
from klqlit.reports.intervals import Interval, over_seeds
from klqlit.reports.runs import STAGES, Run

CURVES = {
    "reward/score": "score",
    "kl/sequence": "KL, nats a completion",
    "objective/J": "J = score − τ KL",
    "reward/gold": "gold score",
}
FEWEST_FOR_A_BAND = 3
"""With two seeds the t-interval is six times as wide as the seeds are apart, and would hide the curves."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Point:
    """A metric at one moment, over seeds."""

    x: float
    y: Interval


Moment = Callable[[int], float | None]
"""Where on the x axis a run stands after a number of phases; None where it is not known."""
Clock = Callable[[Run], Moment]


def by_updates(run: Run) -> Moment:
    """The number of phases itself."""
    return float


def by_seconds(run: Run) -> Moment:
    """Seconds of sampling, scoring and updates that the phases took."""
    seconds = run.seconds
    after = {phase + 1: total for phase, total in seconds.items()} | ({0: 0.0} if seconds else {})
    return after.get


def curve(runs: Sequence[Run], name: str, clock: Clock, done: int) -> list[Point]:
    """A metric over seeds at each phase that all runs have reached.

    Args:
        runs: one a seed.
        name: of the metric; runs without it are left out.
        clock: the x axis.
        done: phases that are done when phase 0 is measured: 0 for rollouts, 1 for validations after the phase.
    """
    having = [(clock(run), values) for run in runs if (values := run.series(name))]
    if not having:
        return []
    points = []
    for phase in sorted(set.intersection(*(set(values) for _, values in having))):
        places = [moment(phase + done) for moment, _ in having]
        known = [place for place in places if place is not None]
        if len(known) == len(having):
            y = over_seeds([values[phase] for _, values in having])
            points.append(Point(x=sum(known) / len(known), y=y))
    return points


def learning_curve(task: Task, tau: float | None, name: str, clock: Clock) -> Figure | None:
    """One metric against updates or seconds, every variant; None where nothing was measured."""
    figure, axes = canvas()
    drawn = [_draw(axes, task, cell, name, clock) for cell in task.at(tau)]
    if not any(drawn):
        return None
    axes.set_title(words(cell_title(task.name, tau)), loc="left")
    axes.set_ylabel(CURVES[name])
    axes.set_xlabel("updates (phases)" if clock is by_updates else "seconds of sampling, scoring and updates")
    _fit_to_lines(axes)
    legend_above(figure, axes)
    return figure


def _fit_to_lines(axes: Axes) -> None:
    """Scale to lines and points; a wide band is cut rather than that it flattens them."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()])
    margin = 0.06 * float(np.ptp(values)) or 0.1
    axes.set_ylim(values.min() - margin, values.max() + margin)


def _draw(axes: Axes, task: Task, cell: Cell, name: str, clock: Clock) -> bool:
    style = look(task.variants, cell.variant)
    line, held_out = curve(cell.runs, name, clock, 0), curve(cell.runs, f"val/{name}", clock, 1)
    if not line and not held_out:
        return False
    count = max(point.y.count for point in (*line, *held_out))
    label = words(cell.variant) + (f" ({count} seeds)" if count > 1 else "")
    x, y = [point.x for point in line], [point.y.mean for point in line]
    axes.plot(x, y, color=style["color"], linestyle=style["linestyle"], label=None if not line else label)
    if count >= FEWEST_FOR_A_BAND:
        low, high = [point.y.low for point in line], [point.y.high for point in line]
        axes.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
    elif count > 1 and line:
        for run in cell.runs:
            single = curve([run], name, clock, 0)
            axes.plot([p.x for p in single], [p.y.mean for p in single], color=style["color"], linewidth=0.8, alpha=0.6)
    axes.plot(
        [point.x for point in held_out],
        [point.y.mean for point in held_out],
        color=style["color"],
        marker=style["marker"],
        markersize=6,
        markeredgecolor="white",
        linestyle="none",
        label=None if line else label,
    )
    return True


def seconds_by_stage(task: Task) -> Figure | None:
    """Seconds an update takes, a bar a variant and tau, split by stage; None where no time was taken."""
    cells = [cell for cell in task.cells if stage_seconds(cell, "optimization") is not None]
    if not cells:
        return None
    figure, axes = canvas(size=(4.4, 1.3 + 0.34 * len(cells)))
    rows = range(len(cells))
    left = [0.0] * len(cells)
    for stage, color, hatch in zip(STAGES, (PALETTE[5], PALETTE[3], PALETTE[2]), ("", "//", ".."), strict=True):
        parts = [interval.mean if (interval := stage_seconds(cell, stage)) else 0.0 for cell in cells]
        axes.barh(rows, parts, left=left, color=color, hatch=hatch, edgecolor="white", label=stage, height=0.7)
        left = [a + b for a, b in zip(left, parts, strict=True)]
    axes.set_yticks(rows, [words(cell_title(cell.variant, cell.tau)) for cell in cells])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("seconds an update")
    legend_above(figure, axes)
    return figure


def stage_seconds(cell: Cell, stage: str) -> Interval | None:
    """Mean seconds that a phase spends on a stage, over seeds."""
    means = [sum(times.values()) / len(times) for run in cell.runs if (times := run.series(f"time/{stage}"))]
    return over_seeds(means) if means else None
