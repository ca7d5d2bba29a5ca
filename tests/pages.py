"""The documentation as data: fenced blocks, shell commands, links, headings, names in backticks.

Run as a script it writes what the python blocks of `docs/miniatures.md` print into the text blocks that follow them.
"""

import contextlib
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LOOP = re.compile(r"for (\w+) in (.+?); do (.+); done$")
_HEREDOC = re.compile(r"^cat > (\S+) <<'(\w+)'\n(.*?)^\2$\n?", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block, where it stands, and the text block that follows it within two lines: what it prints."""

    page: Path
    language: str
    text: str
    line: int
    output: str | None

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def files(self) -> dict[str, str]:
        """What `cat > FILE <<'END'` writes, by file."""
        return {file: text for file, _, text in _HEREDOC.findall(self.text)}

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command, without comments; a command may go on after a backslash. A loop is unrolled."""
        rest = _HEREDOC.sub("", self.text).replace("\\\n", " ")
        lines = [part for line in rest.splitlines() for turn in _unrolled(line) for part in turn.split(" && ")]
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(language: str) -> list[Block]:
    """All fenced blocks of a language, in order."""
    return [
        Block(page, language, found[2], text[: found.start()].count("\n") + 2, _output(text[found.end() :]))
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for found in _FENCE.finditer(text)
        if found[1] == language
    ]


def run(page: Path, namespace: dict[str, Any], smaller: dict[str, str] | None = None) -> list[tuple[Block, str]]:
    """Run a page's python blocks in order, with sizes changed as `smaller` says; what each of them prints."""
    printed = []
    for block in blocks("python"):
        if block.page == page:
            # So many line ends before it that an error names the page's own line.
            text = "\n" * (block.line - 1) + block.text
            for full, small in (smaller or {}).items():
                text = text.replace(full, small)
            code = compile(text, str(page), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(code, namespace)
            printed.append((block, output.getvalue()))
    return printed


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Targets of a page's relative links."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if "://" not in target]


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings can be linked to, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def quoted(page: Path) -> list[str]:
    """What stands in backticks in the prose of a page."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def section(page: Path, heading: str) -> str:
    """The text from a second-level heading to the next."""
    return page.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]


def first_cells(text: str) -> list[str]:
    """Names in backticks in the first column of a text's tables."""
    return [name for line in text.splitlines() if line.startswith("| `") for name in _names(line.split(" | ")[0])]


def _unrolled(line: str) -> list[str]:
    """The body of `for NAME in WORDS; do BODY; done` for each word; any other line as it is."""
    if (loop := _LOOP.match(line)) is None:
        return [line]
    name, words, body = loop.groups()
    return [body.replace(f"${name}", word) for word in shlex.split(words)]


def _output(rest: str) -> str | None:
    found = re.match(r"\n\n```text\n(.*?)^```$", rest, re.MULTILINE | re.DOTALL)
    return found and found[1]


def _names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


if __name__ == "__main__":
    page = ROOT / "docs" / "miniatures.md"
    text = page.read_text(encoding="utf-8")
    for block, output in run(page, {}):
        if block.output is not None:
            before = block.text + "```\n\n```text\n"
            text = text.replace(before + block.output, before + output)
    page.write_text(text, encoding="utf-8")
