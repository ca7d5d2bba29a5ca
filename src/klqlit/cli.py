"""The command line: `python -m klqlit fit --config configs/mini_hh_klq.yaml`.

This module only chooses the command. What a command needs is imported when it runs.
"""

import os
import signal
import sys
import traceback
from importlib import import_module
from types import TracebackType

COMMANDS = {
    "fit": "train: supervised fine-tuning, reward modelling, KLQ, PPO or your own objective",
    "validate": "measure on held-out prompts",
    "test": "the same under the name of a test",
    "predict": "write completions of held-out prompts as JSONL",
    "judge": "compare two policies' completions pairwise, and say how sure the comparison is",
    "analyse": "win rates and their intervals from a file of verdicts",
    "report": "one HTML page of runs and comparisons",
    "consolidate": "one file of a checkpoint that several processes wrote in parts",
    "plan": "the memory a run will need, before it is started",
}

OTHER_COMMANDS = ("judge", "analyse", "report", "consolidate", "plan")
"""Those that do not go through Lightning's command line."""

USAGE = """usage: python -m klqlit COMMAND [--config FILE ...] [--option value ...]

commands:
{commands}

Options are the arguments of the classes in the configuration, and override it:
  python -m klqlit fit --config configs/mini_hh_klq.yaml --model.tau 0.1 --trainer.max_epochs 20
  python -m klqlit fit --config configs/mini_hh_klq.yaml --print_config      the whole configuration
  python -m klqlit fit --help                                                all options
  python -m klqlit judge --a runs/klq --b runs/ppo --judge LengthJudge       who wins?
  python -m klqlit report runs --out report                                  look at everything"""


def main(arguments: list[str]) -> int:
    """Run a command.

    Returns:
        The exit status: 0, 1 where a plan does not fit, 2 where the run cannot go on, or 128 and the number of the
        signal that stopped it.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from klqlit.version import __version__

        print(f"klqlit {__version__}")
        return 0
    command, *options = arguments
    if command not in COMMANDS:
        return fail(f"there is no command {command!r}; choose one of {', '.join(COMMANDS)}")
    try:
        return _run(command, options)
    except KeyboardInterrupt:  # while it was starting, or the second one: a run saves at the first
        print("klqlit: stopped", file=sys.stderr)
        return 128 + signal.SIGINT


def usage() -> str:
    """The help text."""
    return USAGE.format(commands="\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items()))


def fail(message: str) -> int:
    """One line on the error stream, without keys and passwords."""
    from klqlit.printable import printable
    from klqlit.redaction import hide

    print(f"klqlit: error: {printable(' '.join(hide(message).splitlines()))}", file=sys.stderr)
    return 2


def show_trace(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A whole traceback on the error stream, without keys and passwords: as Python's `sys.excepthook`."""
    from klqlit.printable import printable
    from klqlit.redaction import hide

    print(printable(hide("".join(traceback.format_exception(kind, error, trace)))), file=sys.stderr, end="")


def _run(command: str, options: list[str]) -> int:
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from klqlit.algorithms.checks import StaleRollout
    from klqlit.algorithms.divergence import Divergence
    from klqlit.judges.base import JudgeStopped
    from klqlit.user_code import place_in_user_code

    try:
        if command in OTHER_COMMANDS:
            return import_module(f"klqlit.commands.{command}").run(options) or 0
        else:
            from klqlit.command_line import run

            return run(command, options)
    except (ValueError, MisconfigurationException, Divergence, StaleRollout, JudgeStopped) as error:
        if os.environ.get("KLQLIT_TRACEBACK"):
            show_trace(type(error), error, error.__traceback__)
        place = place_in_user_code(error)
        return fail(f"{error} (raised at {place}; KLQLIT_TRACEBACK=1 shows the calls)" if place else str(error))
    return 0
