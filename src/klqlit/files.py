"""Files that a reader never meets half-written."""

from pathlib import Path


def replace_json(path: Path, text: str) -> None:
    """Write JSON, or lines of it: the file appears, or replaces an older one, complete; its folder is made too.

    Half a surrogate pair, which no file in UTF-8 can hold, becomes an escape that JSON knows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(text, encoding="utf-8", errors="backslashreplace")
    scratch.replace(path)
