"""The command line of every arm, and a type of option that the scripts share."""

import argparse
from pathlib import Path

import torch


def positive_int(text: str) -> int:
    """A whole number of at least 1, for argparse: no statistics come of none."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def parse(algorithms: tuple[str, ...] = ()) -> argparse.Namespace:
    """Read the options, and set the number of threads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path, help="what `workloads.write` wrote")
    parser.add_argument("--out", type=Path, required=True, help="file for the rows")
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", action="store_true", help="count matrix products; times are then useless")
    if algorithms:
        parser.add_argument("--algorithm", choices=algorithms, default=algorithms[0])
        parser.add_argument("--processes", type=int, default=1, help="data-parallel processes, which share each update")
        parser.add_argument("--overhead", action="store_true", help="split the update into model work and the rest")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments
