"""What score costs: reward against KL over tau, and how far the proxy leads the truth."""

from collections import defaultdict
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from klqlit.reports.figures.curves import FEWEST_FOR_A_BAND, by_updates, curve
from klqlit.reports.figures.style import GREY, canvas, legend_above, look, words
from klqlit.reports.groups import Cell, Task
from klqlit.reports.intervals import Interval, over_seeds
from klqlit.reports.reading import number
from klqlit.reports.runs import Run

GOLD = "#8a6d00"


def frontier(task: Task, name: str = "reward/score") -> Figure | None:
    """Score against KL at the end, a point a tau, with intervals over seeds both ways.

    Args:
        task: of the runs.
        name: the score: `reward/score` or `reward/gold`.
    """
    figure, axes = canvas(size=(4.4, 3.8))
    drawn = False
    for variant in task.variants:
        points = [
            (cell, kl, score)
            for cell in task.of(variant)
            if (kl := cell.final("kl/sequence")) and (score := cell.final(name))
        ]
        if points:
            _frontier_line(axes, task, variant, points)
            drawn = True
    if not drawn:
        return None
    if name == "reward/score":
        _draw_optimum(axes, task)
    _draw_start(axes, task, name)
    axes.set_title(words(task.name), loc="left")
    axes.set_xlabel("KL to the reference, nats a completion")
    axes.set_ylabel("score" if name == "reward/score" else "gold score")
    axes.margins(0.08)
    # A KL below 0 is not to be had, whatever an interval says.
    axes.set_xlim(left=-0.06 * axes.get_xlim()[1])
    legend_above(figure, axes)
    return figure


def _frontier_line(axes: Axes, task: Task, variant: str, points: Sequence[tuple[Cell, Interval, Interval]]) -> None:
    ordered = sorted(points, key=lambda point: point[1].mean)
    style = look(task.variants, variant)
    axes.errorbar(
        [kl.mean for _, kl, _ in ordered],
        [score.mean for _, _, score in ordered],
        xerr=[error(kl) for _, kl, _ in ordered],
        yerr=[error(score) for _, _, score in ordered],
        capsize=2,
        elinewidth=1,
        markersize=6,
        markeredgecolor="white",
        label=words(variant),
        **style,
    )
    # Both curves carry the same taus: one of them names them, on the side where the other is not.
    below = variant != task.variants[0]
    for cell, kl, score in ordered:
        if cell.tau is not None:
            axes.annotate(
                f"{cell.tau:g}",
                (kl.mean, score.mean),
                (5, -12) if below else (-5, 6),
                textcoords="offset points",
                ha="left" if below else "right",
                fontsize=9,
                color=style["color"],
            )


def error(interval: Interval) -> float:
    """Half of an interval's width, where there are seeds enough to draw it."""
    return interval.half or 0.0 if interval.count >= FEWEST_FOR_A_BAND else 0.0


def _draw_optimum(axes: Axes, task: Task) -> None:
    points = optima(task.runs)
    if points:
        x, y = [kl.mean for kl, _ in points.values()], [score.mean for _, score in points.values()]
        axes.plot(x, y, color="black", linestyle=":", marker="*", markersize=9, label="exact optimum", zorder=1)


def optima(runs: Sequence[Run]) -> dict[float, tuple[Interval, Interval]]:
    """KL and score of the best policy by descending tau, over the problems of the runs that know it."""
    found: dict[float, dict[int | None, tuple[float, float]]] = defaultdict(dict)
    for run in runs:
        tau, kl, score = (number(run.optimum.get(name)) for name in ("tau", "kl", "score"))
        if tau is not None and kl is not None and score is not None:
            found[tau][run.seed] = (kl, score)
    ordered = sorted(found.items(), reverse=True)
    return {
        tau: (over_seeds([kl for kl, _ in seeds.values()]), over_seeds([score for _, score in seeds.values()]))
        for tau, seeds in ordered
    }


def start(runs: Sequence[Run], name: str) -> float | None:
    """A metric of the reference, which is the policy before training; None where it is not known."""
    if name == "kl/sequence":
        return 0.0
    # Where nothing is paid for KL, J is the score.
    kind = {"objective/J": "score", "reward/score": "score", "reward/gold": "gold"}.get(name)
    values = [value for run in runs if kind and (value := run.final(f"reference/{kind}")) is not None]
    if not values and kind == "score":
        values = [value for run in runs if (value := number(run.optimum.get("reference"))) is not None]
    return sum(values) / len(values) if values else None


def _draw_start(axes: Axes, task: Task, name: str) -> None:
    score = start(task.runs, name)
    if score is not None:
        axes.plot([0], [score], color=GREY, marker="s", linestyle="none", markersize=6, label="reference")


def over_optimisation(task: Task, variant: str) -> Figure | None:
    """A variant's proxy and gold score against KL in the course of its runs, in deviations of the reference's scores.

    None where it has no gold score on held-out prompts.
    """
    cells = [cell for cell in task.of(variant) if gains(cell, "gold")]
    if not cells:
        return None
    figure, axes = canvas(size=(4.4, 3.8))
    proxy = look(task.variants, variant)
    for i, cell in enumerate(cells):
        points = gains(cell, "score")
        _draw_gains(axes, points, "proxy: the score trained on" if i == 0 else None, color=proxy["color"], marker="o")
        _draw_gains(axes, gains(cell, "gold"), "gold: the truth" if i == 0 else None, color=GOLD, marker="D")
        if cell.tau is not None:
            axes.annotate(f"τ {cell.tau:g}", points[-1], (4, 4), textcoords="offset points", fontsize=9)
    every = [point for one in task.cells for name in ("score", "gold") for point in gains(one, name)]
    # The same scale for all variants, with room for the names of the taus.
    axes.set_xlim(-0.03 * max(x for x, _ in every), 1.12 * max(x for x, _ in every))
    low, high = min(0.0, *(y for _, y in every)), max(y for _, y in every)
    axes.set_ylim(low - 0.06 * (high - low), high + 0.1 * (high - low))
    axes.axhline(0, color=GREY, linewidth=1)
    axes.set_title(words(f"{task.name}, {variant}"), loc="left")
    axes.set_xlabel("KL to the reference, nats a completion")
    axes.set_ylabel("gain over the reference,\nin its standard deviations")
    legend_above(figure, axes)
    return figure


def _draw_gains(
    axes: Axes, points: Sequence[tuple[float, float]], label: str | None, *, color: str, marker: str
) -> None:
    proxy = marker == "o"
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=color,
        marker=marker,
        linestyle="-" if proxy else "--",
        markerfacecolor=color if proxy else "white",
        markersize=5,
        linewidth=1.2,
        label=label,
    )


def gains(cell: Cell, name: str) -> list[tuple[float, float]]:
    """KL and (score - reference's score) / reference's deviation at each validation, means over seeds."""

    def at(metric: str) -> list[Interval]:
        return [point.y for point in curve(cell.runs, f"val/{metric}", by_updates, 1)]

    kls, scores = at("kl/sequence"), at(f"reward/{name}")
    means, spreads = at(f"reference/{name}"), at(f"reference/{name}_std")
    if not len(kls) == len(scores) == len(means) == len(spreads):
        return []
    return [
        (kl.mean, (score.mean - mean.mean) / spread.mean)
        for kl, score, mean, spread in zip(kls, scores, means, spreads, strict=True)
        if spread.mean > 0
    ]
