"""`python -m klqlit consolidate FOLDER FILE`: one file of a sharded checkpoint."""

import argparse
from collections.abc import Sequence

from klqlit.commands.options import Parser

EXAMPLE = """example:
  python -m klqlit consolidate runs/tldr/klq/checkpoints/step-160.ckpt runs/step-160.ckpt"""


def run(options: list[str]) -> None:
    """Read the folder and write the file.

    Raises:
        ValueError: an option is unusable, or the folder holds no complete checkpoint.
    """
    chosen = parse(options)
    # torch takes seconds to import, which a mistake in the options need not cost.
    from klqlit.strategies.checkpoints import consolidate

    consolidate(chosen.folder, chosen.file)
    print(f"{chosen.file} holds the whole checkpoint; a run goes on from it with --ckpt_path {chosen.file}")


def parse(options: Sequence[str]) -> argparse.Namespace:
    """The options of `consolidate`.

    Raises:
        ValueError: one is unknown, or unusable.
    """
    parser = Parser(
        prog="python -m klqlit consolidate",
        description="One file of a checkpoint that was written in parts; a run under any strategy goes on from it.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="FOLDER", help="the checkpoint: a folder with meta.pt in it")
    parser.add_argument("file", metavar="FILE", help="what to write")
    return parser.parse(options)
