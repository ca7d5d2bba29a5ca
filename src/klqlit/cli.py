"""The command line: `python -m klqlit fit --config configs/mini_hh_klq.yaml`.

This module only chooses the command. What a command needs is imported when it runs.
"""

import os
import sys
import traceback

COMMANDS = {
    "fit": "train: supervised fine-tuning, reward modelling, KLQ, PPO or your own objective",
    "validate": "measure on held-out prompts",
    "test": "the same under the name of a test",
    "predict": "write completions of held-out prompts as JSONL",
}

USAGE = """usage: python -m klqlit COMMAND --config FILE [--config FILE ...] [--option value ...]

commands:
{commands}

Options are the arguments of the classes in the configuration, and override it:
  python -m klqlit fit --config configs/mini_hh_klq.yaml --model.tau 0.1 --trainer.max_epochs 20
  python -m klqlit fit --config configs/mini_hh_klq.yaml --print_config      the whole configuration
  python -m klqlit fit --help                                                all options"""


def main(arguments: list[str]) -> int:
    """Run a command.

    Returns:
        The exit status: 0, or 2 where the user's input was at fault.
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
    return _run(command, options)


def usage() -> str:
    """The help text."""
    return USAGE.format(commands="\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items()))


def fail(message: str) -> int:
    """One line on the error stream."""
    print(f"klqlit: error: {message}", file=sys.stderr)
    return 2


def _run(command: str, options: list[str]) -> int:
    from klqlit.algorithms.checks import Divergence, StaleRollout
    from klqlit.command_line import run

    try:
        run(command, options)
    except (ValueError, Divergence, StaleRollout) as error:
        if os.environ.get("KLQLIT_TRACEBACK"):
            traceback.print_exc()
        return fail(str(error))
    return 0
