"""Options of the commands that do not train: a mistake is one line that names the nearest."""

import argparse
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn, final


@final
class Parser(argparse.ArgumentParser):
    """Raises ValueError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; `{self.prog} --help` lists the options")

    def parse(self, options: Sequence[str]) -> argparse.Namespace:
        """The options.

        Raises:
            ValueError: one is unknown, or its value is unusable; the message names the nearest.
        """
        chosen, unknown = self.parse_known_args(options)
        if unknown:
            name = unknown[0].split("=")[0]
            near = get_close_matches(name, re.findall(r"--\w+", self.format_help()), n=1)
            self.error(f"{name!r} is not expected" + (f", did you mean {near[0]!r}?" if near else ""))
        return chosen
