"""Files that a reader never meets half-written."""

import os
from pathlib import Path


def replace_json(path: Path, text: str) -> None:
    """Write JSON, or lines of it: the file appears, or replaces an older one, complete; its folder is made too.

    It is on the disk, and not only in its cache, before it takes its place, where a power cut would leave an empty one.

    Half a surrogate pair, which no file in UTF-8 can hold, becomes an escape that JSON knows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    with scratch.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
