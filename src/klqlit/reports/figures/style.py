"""What all figures share: size, colours, and the way they get into the page and onto the disk."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

# Okabe and Ito's palette, told apart with every kind of colour vision; the first two are KLQ's and PPO's.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
GREY = "#555555"

# 4.4 inches are as wide as a phone: the text is then about as large as that around it.
SIZE = (4.4, 3.4)
WIDEST_LEGEND = 44
"""Characters in a row of legend entries."""
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "legend.fontsize": 9.5,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "klqlit",
    "axes.formatter.use_mathtext": False,
    "axes.formatter.limits": (-4, 5),
}


@dataclass(kw_only=True, slots=True, frozen=True)
class Picture:
    """A figure on the page.

    Attributes:
        name: of its files, without suffix.
        svg: the drawing, ready to stand in a page.
        title: what it shows, in a line.
    """

    name: str
    svg: Markup
    title: str


@final
class Gallery:
    """Writes each figure as PNG and SVG, and hands it back for the page.

    Args:
        folder: for the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []

    def add(self, figure: Figure, name: str, title: str) -> Picture:
        """Keep a finished figure.

        Args:
            figure: drawn under `STYLE`.
            name: from which the files' name is made.
            title: what it shows; also read aloud in the figure's place.
        """
        slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "figure"
        # Two names may be one after this.
        slug = slug if slug not in self.names else f"{slug}-{len(self.names)}"
        self.names.append(slug)
        self.folder.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(self.folder / f"{slug}.png", dpi=200)
            # The layout is found: to find it again takes as long as to draw.
            figure.set_layout_engine("none")
            # Neither date nor version: the same runs give the same file.
            figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        svg = text.getvalue()
        (self.folder / f"{slug}.svg").write_text(svg, encoding="utf-8")
        return Picture(name=slug, svg=inline(svg, f"f{len(self.names)}-", title), title=title)


def inline(svg: str, prefix: str, title: str) -> Markup:
    """An SVG file as part of a page: ids of its own, no fixed size, a name for those who cannot see it."""
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{prefix}', body)
    body = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}", body)
    head, rest = body.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    opening = (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img" aria-label="{Markup.escape(title)}">'
    )
    return Markup(opening + rest)


def canvas(size: tuple[float, float] = SIZE, **subplots: Any) -> tuple[Figure, Any]:
    """An empty figure under `STYLE`, and its axes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        return figure, figure.subplots(**subplots)


def color(variants: Sequence[str], variant: str) -> str:
    """KLQ is blue and PPO orange, whatever else there is; further variants take what is left."""
    return PALETTE[_place(variants, variant) % len(PALETTE)]


def look(variants: Sequence[str], variant: str) -> dict[str, Any]:
    """Colour, marker and dashes of a variant, so that print without colour can be read."""
    place = _place(variants, variant)
    return {
        "color": PALETTE[place % len(PALETTE)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": DASHES[place % len(DASHES)],
    }


def _place(variants: Sequence[str], variant: str) -> int:
    firsts = [next((v for v in variants if v.startswith(name)), None) for name in ("KLQ", "PPO")]
    if variant in firsts:
        return firsts.index(variant)
    return 2 + [v for v in variants if v not in firsts].index(variant)


def words(text: str) -> str:
    """Text that is drawn as it stands: dollars begin no formula, and a leading underscore hides no legend entry."""
    return ("\N{ZERO WIDTH SPACE}" if text.startswith("_") else "") + text.replace("$", r"\$")


def legend_above(figure: Figure, axes: Axes) -> None:
    """The legend over the axes, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        fitting = (n for n in (3, 2) if n * max(map(len, labels)) <= WIDEST_LEGEND)
        with matplotlib.rc_context(STYLE):
            figure.legend(
                handles, labels, loc="outside upper left", ncols=next(fitting, 1), frameon=False, borderaxespad=0.1
            )


def tau_axis(axes: Axes, taus: Sequence[float]) -> None:
    """A logarithmic axis with exactly the values that were run."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(taus)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(taus), [f"{tau:g}" for tau in taus])
    axes.set_xlim(min(taus) / 1.4, max(taus) * 1.4)
    axes.set_xlabel("τ, the KL coefficient")
