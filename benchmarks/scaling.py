"""How seconds and memory of an update grow with its sizes: fitted exponents and a plot.

    python benchmarks/scaling.py [--factors rollouts prompt response vocabulary layers processes] [--out runs/scaling]

One size at a time is doubled from a base; KLQ runs in a process of its own. An exponent is the slope of the logarithm
of the measured quantity against that of the size. The floating-point operations of an update, which are counted, have
one as well: an update whose time grows faster than they do is reported as a warning, and so is memory that grows faster
than the size. Single stages are shown and not judged, since these operations are those of all; nor are processes.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from scipy.stats import linregress

from step import arms, summary, workloads
from step.arguments import positive_int
from step.measuring import STAGES
from step.page import fill, origin, provenance, table
from step.workloads import Workload

BASE = Workload(
    name="base", hidden=128, layers=2, heads=4, vocab=4096, prompt_tokens=32, response_tokens=32, rollouts=32, epochs=1
)
SIZES: dict[str, tuple[str, list[int]]] = {
    "rollouts": ("rollouts", [16, 32, 64, 128]),
    "prompt": ("prompt_tokens", [32, 64, 128, 256]),
    "response": ("response_tokens", [16, 32, 64, 128]),
    "vocabulary": ("vocab", [4096, 8192, 16384, 32768]),
    "layers": ("layers", [2, 4, 8, 16]),
}
"""What is varied: a field of the workload, and its values."""
TINY_SIZES = {"rollouts": [8, 16], "prompt": [4, 8], "response": [4, 8], "vocabulary": [64, 128], "layers": [1, 2]}
MARGIN = 0.1
"""An exponent this much above what is due, beyond twice its error, is a warning."""
NO_WARNING = (
    f"Within {MARGIN} and twice the error, no update grows faster than its operations, and no memory faster than the "
    "size."
)
COLORS = {"total": "black", "generation": "#0072b2", "scoring": "#009e73", "optimization": "#d55e00"}


@dataclass(kw_only=True, slots=True, frozen=True)
class Exponent:
    """A slope in log-log with its standard error (0 for two points)."""

    value: float
    error: float

    def exceeds(self, due: float) -> bool:
        """Whether it lies above `due` by more than chance and the margin explain."""
        return self.value - 2 * self.error > due + MARGIN

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.error:.2f}"


def main() -> None:
    """Measure, fit, report, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    factors = [*SIZES, "processes"]
    parser.add_argument("--factors", nargs="+", choices=factors, default=factors)
    parser.add_argument("--updates", type=positive_int, default=3, help="timed updates, after one to warm up")
    parser.add_argument("--threads", type=positive_int, default=1, help="of torch in each process")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for a quiet machine")
    parser.add_argument("--tiny", action="store_true", help="sizes that show nothing, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"), help="folder of scaling.json")
    parser.add_argument("--image", type=Path, help="where the plot goes; the folder of scaling.json by default")
    parser.add_argument("--page", type=Path, help="page that holds the generated section")
    arguments = parser.parse_args()
    result = {"provenance": provenance(), "factors": {name: vary(name, arguments) for name in arguments.factors}}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "scaling.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result["factors"], arguments.image or arguments.out / "scaling.png")
    text = markdown(result)
    print(text)
    if arguments.page:
        fill(arguments.page, "scaling", text)


def vary(factor: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Points of one factor."""
    base = workloads.TINY if arguments.tiny else BASE
    if factor == "processes":
        points = [(n, replace(base, rollouts=2 * base.rollouts), n) for n in (1, 2)]
    else:
        field, sizes = SIZES[factor]
        sizes = TINY_SIZES[factor] if arguments.tiny else sizes
        points = [(size, replace(base, **{field: size}), 1) for size in sizes]
    measured = [measure(workload, processes, arguments) for _, workload, processes in points]
    return {"sizes": [size for size, _, _ in points], "points": measured}


def measure(workload: Workload, processes: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One update's least seconds by stage, peak memory beyond what the models take, and counted operations."""
    updates = arguments.updates + 1
    with tempfile.TemporaryDirectory() as scratch:
        directory = workloads.write(workload, Path(scratch), prompts=workload.rollouts * updates)
        work = arms.KLQ.run(directory, updates=1, threads=arguments.threads, count=True)["rows"][0]["work"]
        arms.wait_for_quiet(arguments.patience, summary.CLEAN)
        run = arms.KLQ.run(directory, updates=updates, threads=arguments.threads, processes=processes)
    # What disturbs an update only makes it longer.
    seconds = {name: min(row[name] for row in run["rows"][1:]) for name in ("total", *STAGES)}
    memory = run["peak_memory_mb"] - run["memory_before_mb"]
    point = {"seconds": seconds, "memory_mb": memory, "flops": sum(work["flops"].values())}
    print(workload, processes, point, flush=True)
    return point


def fit(sizes: Sequence[float], values: Sequence[float]) -> Exponent:
    """The exponent b of values = a sizes^b by least squares in log-log."""
    line = linregress(np.log(sizes), np.log(values))
    error = 0.0 if len(sizes) < 3 else float(line.stderr)
    return Exponent(value=float(line.slope), error=error)


def exponents(found: dict[str, Any]) -> dict[str, Exponent]:
    """Of operations, seconds and memory."""
    sizes, points = found["sizes"], found["points"]
    fitted = {name: fit(sizes, [point["seconds"][name] for point in points]) for name in ("total", *STAGES)}
    return fitted | {
        "operations": fit(sizes, [point["flops"] for point in points]),
        "memory": fit(sizes, [max(point["memory_mb"], 1.0) for point in points]),
    }


def warnings(factor: str, fitted: dict[str, Exponent]) -> list[str]:
    """What grows faster than it should: an update than its operations, memory than the size."""
    if factor == "processes":
        return []
    due = {"total": fitted["operations"].value, "memory": 1.0}
    return [
        f"{name} grows with {factor} as its power {fitted[name]}, where {limit:.2f} is due"
        for name, limit in due.items()
        if fitted[name].exceeds(limit)
    ]


def markdown(result: dict[str, Any]) -> str:
    """The section of docs/performance.md."""
    head = ["exponent of", "operations", "an update", *STAGES, "memory"]
    rows, found = [], []
    for factor, entry in result["factors"].items():
        fitted = exponents(entry)
        names = ("operations", "total", *STAGES, "memory")
        rows.append([f"{factor}, {entry['sizes'][0]} to {entry['sizes'][-1]}", *(str(fitted[name]) for name in names)])
        found += warnings(factor, fitted)
    about = (
        f"{origin(result['provenance'])} "
        "1 is proportional; below 1, fixed costs weigh; processes share one update, so -1 is ideal."
    )
    ending = [f"- Warning: {text}" for text in found] or [NO_WARNING]
    return "\n\n".join([about, table([head, *rows]), "\n".join(ending)])


def draw(factors: dict[str, Any], file: Path) -> None:
    """Seconds by stage against each size, both logarithmic, with memory on an axis of its own."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    for axis, (factor, found) in zip(axes.flat, factors.items(), strict=False):
        for name, color in COLORS.items():
            seconds = [point["seconds"][name] for point in found["points"]]
            axis.loglog(found["sizes"], seconds, "o-", color=color, label=name)
        memory = axis.twinx()
        megabytes = [max(point["memory_mb"], 1.0) for point in found["points"]]
        memory.loglog(found["sizes"], megabytes, "s:", color="grey", label="memory beyond the models (right)")
        axis.set_xlabel(factor)
        axis.set_xticks(found["sizes"], [str(size) for size in found["sizes"]])
        axis.xaxis.set_minor_locator(NullLocator())
        for side, name in ((axis, "s"), (memory, "MB")):
            side.set_ylabel(name, color="grey" if side is memory else "black")
            plain_ticks(side.yaxis)
        axis.grid(alpha=0.3)
        lines = [*axis.get_lines(), *memory.get_lines()]  # those of any panel serve the legend
    for axis in axes.flat[len(factors) :]:
        axis.set_visible(False)
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False)
    figure.suptitle("One update of KLQ: growth with its sizes")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def plain_ticks(axis: Axis) -> None:
    """Numbers without exponents, at 1, 2 and 5 times powers of ten where the axis spans enough of them."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if high > 4 * low else MaxNLocator(4))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


if __name__ == "__main__":
    main()
