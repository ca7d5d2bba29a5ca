"""`python -m klqlit analyse FILE`: win rates, their intervals, and what they hide, from a file of verdicts."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from klqlit.commands.options import Parser
from klqlit.judges.records import JudgedPair
from klqlit.judges.summary import as_table, characters, sentences, summarise, words
from klqlit.judges.two_judges import agreement_sentences, as_agreement_table, compare_judges
from klqlit.judges.verdict_files import (
    MEANINGS,
    Meaning,
    VerdictTable,
    as_text,
    is_judgments,
    names_of_sides,
    read_judgments,
    read_rows_of_verdicts,
)

LENGTHS = {"words": words, "characters": characters}
COLUMNS = ("prompt", "a", "b", "verdict", "swapped")

EXAMPLES = """examples:
  this package's own judgments:
    python -m klqlit analyse runs/judged/klq-vs-ppo-LengthJudge
  a table whose verdicts name the column of the better response, with a column that says whether it was shown second:
    python -m klqlit analyse verdicts.csv --a response0 --b response1 --verdict preferred \\
        --win response0 --loss response1 --swapped shuffled
  verdicts that name a place, A or B, in which the better response was shown:
    python -m klqlit analyse verdicts.jsonl --first A --second B --tie C --swapped a_was_second"""


def run(options: list[str]) -> None:
    """Print the analysis of a file of verdicts; with `--against`, its agreement with another judge's.

    Raises:
        ValueError: an option, file, column or value is unusable.
    """
    chosen = parse(options)
    summary, judged = _analyse(chosen.file, chosen)
    console = Console()
    name_a, name_b = _names(chosen)
    _show(console, summary, name_a, name_b)
    if chosen.against:
        other_summary, other_judged = _analyse(chosen.against, chosen)
        _show(console, other_summary, name_a, name_b)
        compared = compare_judges(judged, other_judged)
        console.print(as_agreement_table(compared))
        _say(console, agreement_sentences(compared))
        summary |= {"against": other_summary, "agreement": compared}
    if chosen.out:
        _write(chosen.out, {"a": {"name": name_a}, "b": {"name": name_b}, **summary})
        _say(console, [f"Written to {chosen.out}."])


def parse(options: Sequence[str]) -> argparse.Namespace:
    """The options of `analyse`.

    Raises:
        ValueError: one is unknown, or its value is unusable; the message names the nearest.
    """
    return _parser().parse(options)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m klqlit analyse",
        description="Win rates and their intervals from a file of verdicts. All rates are from the view of side A.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("file", metavar="FILE", help=".csv, .jsonl, .json or .parquet, plain or .gz; or a folder that `judge` wrote")
    add("--against", metavar="FILE", help="another judge's verdicts on the same pairs: how far do the two agree?")
    columns = parser.add_argument_group("columns of a table from elsewhere")
    columns.add_argument("--prompt", metavar="COLUMN", help="prompts; default: prompt")
    columns.add_argument("--a", metavar="COLUMN", help="side A's responses; default: a")
    columns.add_argument("--b", metavar="COLUMN", help="side B's responses; default: b")
    columns.add_argument("--verdict", metavar="COLUMN", help="verdicts; default: verdict")
    columns.add_argument(
        "--swapped", metavar="COLUMN", help="true or 1 where A was shown second; default: A was always shown first"
    )
    values = parser.add_argument_group(
        "what verdicts mean", "Each may be given several times. Without them the names mean themselves."
    )
    for meaning, text in {
        "win": "A is better, wherever it was shown",
        "loss": "B is better, wherever it was shown",
        "first": "the response shown first is better",
        "second": "the response shown second is better",
        "tie": "neither is better",
        "unreadable": "there is no verdict: left out, and counted",
    }.items():
        values.add_argument(f"--{meaning}", metavar="VALUE", action="append", default=[], help=text)
    analysis = parser.add_argument_group("analysis")
    analysis.add_argument("--level", type=float, default=0.95, help="of the intervals; default: 0.95")
    analysis.add_argument("--draws", type=int, default=10_000, help="resamples of the bootstrap; default: 10000")
    analysis.add_argument("--seed", type=int, default=0, help="of the resamples; default: 0")
    analysis.add_argument("--length", choices=LENGTHS, default="words", help="unit of length; default: words")
    output = parser.add_argument_group("output")
    output.add_argument("--name_a", metavar="NAME", help="what to call A; default: as `judge` did, or its column")
    output.add_argument("--name_b", metavar="NAME", help="what to call B; default: as `judge` did, or its column")
    output.add_argument("--out", metavar="FILE", help="write all numbers as JSON, such as analysis/summary.json")
    return parser


def _analyse(file: str, chosen: argparse.Namespace) -> tuple[dict[str, Any], list[JudgedPair]]:
    judged = _read(file, chosen)
    summary = summarise(judged, level=chosen.level, draws=chosen.draws, seed=chosen.seed, length=LENGTHS[chosen.length])
    return {"file": file, **summary, "seed": chosen.seed, "length": chosen.length}, judged


def _read(file: str, chosen: argparse.Namespace) -> list[JudgedPair]:
    rows = read_rows_of_verdicts(file)
    given = [name for name in (*COLUMNS, *MEANINGS) if vars(chosen)[name]]
    if not is_judgments(rows):
        columns = {name: vars(chosen)[name] for name in COLUMNS if vars(chosen)[name]}
        return VerdictTable(**columns, meanings=_meanings(chosen)).read(rows, file)
    if given and not chosen.against:
        raise ValueError(
            f"{file} holds judgments of this package, whose columns and verdicts are known: leave out "
            + ", ".join(f"--{name}" for name in given)
        )
    return read_judgments(rows, file)


def _meanings(chosen: argparse.Namespace) -> dict[str, Meaning]:
    meanings: dict[str, Meaning] = {}
    for meaning in MEANINGS:
        for value in map(as_text, vars(chosen)[meaning]):
            if meanings.setdefault(value, meaning) != meaning:
                raise ValueError(f"the verdict {value!r} cannot mean both --{meanings[value]} and --{meaning}")
    return meanings


def _names(chosen: argparse.Namespace) -> tuple[str, str]:
    name_a, name_b = names_of_sides(chosen.file) or ("A", "B")
    return chosen.name_a or chosen.a or name_a, chosen.name_b or chosen.b or name_b


def _show(console: Console, summary: dict[str, Any], name_a: str, name_b: str) -> None:
    _say(console, [f"{summary['file']}:"])
    console.print(as_table(summary, name_a, name_b))
    _say(console, [*sentences(summary, name_a, name_b), ""])


def _say(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _write(out: str, numbers: dict[str, Any]) -> None:
    file = Path(out)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(numbers, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"--out {out}: cannot write there ({error.strerror}); name a file such as summary.json"
        ) from error
