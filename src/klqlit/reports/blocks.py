"""What a page is made of. Everything in it is text to be escaped, but for pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from klqlit.reports.figures.style import Picture
from klqlit.reports.texts import TEXTS


@dataclass(kw_only=True, slots=True, frozen=True)
class Table:
    """Rows under headings.

    Attributes:
        title: what it shows.
        headings: of the columns.
        rows: as many cells each.
        texts: so many first columns hold text, the others numbers.
        note: what a reader must know.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1
    note: str = ""
    kind: str = "table"


@dataclass(kw_only=True, slots=True, frozen=True)
class Pictures:
    """Pictures side by side, as many as there is room for."""

    pictures: Sequence[Picture]
    kind: str = "pictures"


@dataclass(kw_only=True, slots=True, frozen=True)
class Fold:
    """Blocks that are shown on demand, and in print."""

    title: str
    blocks: Sequence[Any]
    opened: bool = False
    kind: str = "fold"


@dataclass(kw_only=True, slots=True, frozen=True)
class Source:
    """A file as it stands, shown on demand and not in print."""

    title: str
    text: str
    kind: str = "source"


@dataclass(kw_only=True, slots=True)
class Section:
    """A question and what answers it.

    Attributes:
        key: its place on the page, for links.
        title: the question.
        lead: how to read what follows.
        blocks: the answer.
        missing: what is not there, and which command would make it.
    """

    key: str
    title: str
    lead: str
    blocks: list[Any] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def new_section(key: str) -> Section:
    """An empty section under its title and lead."""
    title, lead = TEXTS[key]
    return Section(key=key, title=title, lead=lead)


@dataclass(kw_only=True, slots=True)
class Chapter:
    """Sections about one task, or about everything."""

    key: str
    title: str
    sections: list[Section]
