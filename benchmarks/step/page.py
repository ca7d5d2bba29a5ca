"""Generated parts of a page, between two comments that name them; and where numbers were made."""

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def fill(page: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.

    Raises:
        ValueError: the page has no such place.
    """
    whole = page.read_text(encoding="utf-8")
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    if begin not in whole or end not in whole:
        raise ValueError(f"{page} has no place for {name}: put {begin.strip()} and {end} where it is to stand")
    before, rest = whole.split(begin, 1)
    after = rest.split(end, 1)[1]
    page.write_text(f"{before}{begin}{text.strip()}\n{end}{after}", encoding="utf-8")


def provenance() -> dict[str, str]:
    """Commit, machine, date and command line."""
    return {
        "commit": commit(),
        "machine": machine(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "command": " ".join(["python", str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *sys.argv[1:]]),
        "torch": torch.__version__,
    }


def origin(made: dict[str, str]) -> str:
    """A sentence of what `provenance` found."""
    return f"Commit {made['commit']}, {made['machine']}, torch {made['torch']}, {made['date']}: `{made['command']}`."


def commit() -> str:
    """Of the working tree, with a mark where it was changed; "unknown" outside git."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def machine() -> str:
    """Processor, cores and memory, or the GPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    isa = torch.backends.cpu.get_cpu_capability()
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {isa}, {memory:.0f} GiB"


def table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is its head, the first column text."""
    head, *body = rows
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body])


def _lines(file: str) -> list[str]:
    path = Path(file)
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
