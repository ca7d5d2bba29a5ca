"""`python -m klqlit plan --config FILE ...`: the memory that a run will need, before it is started."""

import argparse
import warnings
from collections.abc import Sequence

from klqlit.commands.options import Parser

EXAMPLES = """examples:
  python -m klqlit plan --config configs/mini_hh_klq.yaml
  python -m klqlit plan --config configs/tldr_klq.yaml --devices 8 --sharding fsdp --memory 80
all options of `fit` but --resume are understood as well, such as --trainer.accumulate_grad_batches 4"""


def run(options: list[str]) -> int:
    """Print the plan.

    Returns:
        The exit status: 0 where the run fits, 1 where it does not.

    Raises:
        ValueError: an option is unusable, or the configuration is not that of an online run.
    """
    chosen, rest = split_options(options)
    # A second of imports, which a mistake in the options need not cost.
    from klqlit.planning.device import planned
    from klqlit.planning.table import show

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = planned(rest, devices=chosen.devices, sharding=chosen.sharding, memory=chosen.memory)
    return 0 if show(found) else 1


def parse(options: Sequence[str]) -> argparse.Namespace:
    """The options of `plan` itself; those of `fit` beside them are not looked at.

    Raises:
        ValueError: one is unusable.
    """
    return split_options(options)[0]


def split_options(options: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of `plan` itself, and those of `fit`.

    Raises:
        ValueError: one of its own is unusable.
    """
    parser = Parser(
        prog="python -m klqlit plan",
        description="The memory that an online run will need on each device, stage by stage, and whether it fits.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--devices", type=int, help="devices that share the work; default: the configuration's")
    parser.add_argument(
        "--sharding", choices=("none", "fsdp"), help="how weights lie on them; default: the configuration's"
    )
    parser.add_argument("--memory", type=float, help="GiB of each device; default: what this machine has")
    chosen, rest = parser.parse_known_args(options)
    for name in ("devices", "memory"):
        value = vars(chosen)[name]
        if value is not None and not value > 0:
            raise ValueError(f"--{name} {value} must be above 0")
    return chosen, rest
