"""Whose code raised an error: this package's, whose messages stand for themselves, or the user's own."""

import sysconfig
import traceback
from pathlib import Path

PACKAGE = Path(__file__).parent
STANDARD_LIBRARY = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
INSTALLED = ("site-packages", "dist-packages")


def place_in_user_code(error: BaseException) -> str | None:
    """File and line of the user's code that raised an error; None where this package's code did.

    What libraries raise is put down to who called them: `int("no")` and `json.loads("no")` to the line they stand in.
    Of an error that was made from another, the first counts.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(PACKAGE):
            return None
        if not _is_library(file):
            return f"{file}:{line}"
    return None


def _is_library(file: Path) -> bool:
    made_up = str(file).startswith("<")  # compiled from no file, such as importlib and what decorators generate
    installed = any(name in file.parts for name in INSTALLED)
    return made_up or installed or any(file.is_relative_to(folder) for folder in STANDARD_LIBRARY)
