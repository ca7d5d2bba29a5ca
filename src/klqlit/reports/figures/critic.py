"""What the critic knows: calibration of V and Q, and explained variance in the course of the run."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from klqlit.reports.figures.curves import by_updates, curve
from klqlit.reports.figures.style import GREY, canvas, legend_above, look, words
from klqlit.reports.groups import Cell, Task, cell_title
from klqlit.reports.reading import mapping, number
from klqlit.reports.runs import Run

NAMES = {"V": "V(s), value", "Q": "Q(s, a), action value"}


def calibration(task: Task, tau: float | None, name: str) -> Figure | None:
    """Mean realised return against mean prediction in each bin, at the last validation; None where none is recorded."""
    figure, axes = canvas(size=(4.4, 4.2))
    drawn = [_draw_bins(axes, task, cell, name) for cell in task.at(tau)]
    if not any(drawn):
        return None
    ends = [*axes.get_xlim(), *axes.get_ylim()]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=GREY, linewidth=1, zorder=0)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_title(words(cell_title(task.name, tau)), loc="left")
    axes.set_xlabel(f"predicted {NAMES[name]}")
    axes.set_ylabel("realised return")
    legend_above(figure, axes)
    return figure


def _draw_bins(axes: Axes, task: Task, cell: Cell, name: str) -> bool:
    style = look(task.variants, cell.variant)
    having = [points for run in cell.runs if (points := bins(run, name))]
    for i, points in enumerate(having):
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            markersize=5,
            linewidth=1,
            alpha=0.9 if len(having) == 1 else 0.6,
            label=words(cell.variant) + (f" ({len(having)} seeds)" if len(having) > 1 else "") if i == 0 else None,
            **style,
        )
    return bool(having)


def bins(run: Run, name: str) -> list[tuple[float, float]]:
    """Mean prediction and mean realised return of each bin at the last validation."""
    rows = run.last_rows(run.critic)
    found = mapping(rows[-1].get(name)).get("bins") if rows else None
    parts = [mapping(part) for part in found] if isinstance(found, list) else []
    points = [(number(part.get("predicted")), number(part.get("realised"))) for part in parts]
    return [(x, y) for x, y in points if x is not None and y is not None]


def explained_variance(task: Task, tau: float | None) -> Figure | None:
    """Explained variance of each phase's returns by V, over seeds; None where it was not measured."""
    figure, axes = canvas()
    drawn = False
    for cell in task.at(tau):
        points = curve(cell.runs, "critic/explained_variance", by_updates, 0)
        if points:
            drawn = True
            style = look(task.variants, cell.variant)
            x, y = [point.x for point in points], [point.y.mean for point in points]
            axes.plot(x, y, color=style["color"], linestyle=style["linestyle"], label=words(cell.variant))
    if not drawn:
        return None
    # One bad phase at the start may be at -10; what matters is whether the critic beats a constant.
    axes.set_ylim(max(axes.get_ylim()[0], -1.0), 1.02)
    axes.axhline(0, color=GREY, linewidth=1)
    axes.set_title(words(cell_title(task.name, tau)), loc="left")
    axes.set_ylabel("explained variance of returns")
    axes.set_xlabel("updates (phases)")
    legend_above(figure, axes)
    return figure
