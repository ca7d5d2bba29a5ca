"""`python -m klqlit report RUN [RUN ...] --out report`: one page on runs and comparisons."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from klqlit.commands.options import Parser

EXAMPLES = """examples:
  everything below runs/:
    python -m klqlit report runs --out report
  two runs and their comparison:
    python -m klqlit report runs/klq runs/ppo runs/judged/klq-vs-ppo-LengthJudge --out report"""


def run(options: list[str]) -> None:
    """Read the folders and write the report.

    Raises:
        ValueError: an option is unusable, or there is nothing to report.
    """
    chosen = parse(options)
    # Figures take a second to import, which a mistake in the options need not cost.
    from klqlit.reports.experiment import read_experiment
    from klqlit.reports.page import write_report

    experiment = read_experiment([Path(path) for path in chosen.runs])
    page = write_report(experiment, Path(chosen.out), chosen.runs)
    print(f"{len(experiment.runs)} runs and {len(experiment.comparisons)} comparisons: {page}")


def parse(options: Sequence[str]) -> argparse.Namespace:
    """The options of `report`.

    Raises:
        ValueError: one is unknown, or unusable.
    """
    parser = Parser(
        prog="python -m klqlit report",
        description="One self-contained HTML page about runs and comparisons, with its figures as PNG and SVG.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="a run's folder, a comparison's, or a folder with any number of both"
    )
    parser.add_argument("--out", default="report", help="folder for index.html and figures/; default: report")
    return parser.parse(options)
