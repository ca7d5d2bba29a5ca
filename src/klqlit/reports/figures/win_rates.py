"""Win rates over tau, plain and length-controlled."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from klqlit.reports.comparisons import Share
from klqlit.reports.figures.style import GREY, PALETTE, canvas, legend_above, tau_axis, words
from klqlit.reports.win_rates import KINDS, Series, pooled

LOOKS = {"win_rate": ("plain", PALETTE[0], "o", -1), "length_controlled": ("length-controlled", PALETTE[2], "s", 1)}


def win_rate_figure(series: Series) -> Figure:
    """Win rate of the first variant against the second, with intervals."""
    figure, axes = canvas()
    taus = list(series.points)
    for kind in KINDS:
        points = [(tau, share) for tau, duels in series.points.items() if (share := pooled(duels, kind)) is not None]
        if points:
            _draw(axes, kind, points)
    axes.axhline(0.5, color=GREY, linewidth=1)
    tau_axis(axes, taus)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_ylabel(words(f"{series.first} wins against\n{series.second}"))
    legend_above(figure, axes)
    return figure


def _draw(axes: Axes, kind: str, points: Sequence[tuple[float, Share]]) -> None:
    label, color, marker, side = LOOKS[kind]
    axes.errorbar(
        # Beside each other, so that intervals do not hide each other.
        [tau * 1.03**side for tau, _ in points],
        [share.rate for _, share in points],
        yerr=[
            [share.rate - (share.rate if share.low is None else share.low) for _, share in points],
            [(share.rate if share.high is None else share.high) - share.rate for _, share in points],
        ],
        color=color,
        marker=marker,
        markersize=6,
        markeredgecolor="white",
        linestyle="-" if side < 0 else "--",
        capsize=3,
        elinewidth=1.4,
        label=label,
    )
