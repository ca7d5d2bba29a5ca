"""The page: one file with everything in it."""

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from klqlit.printable import printable
from klqlit.reports.chapters import task_chapter
from klqlit.reports.experiment import Experiment
from klqlit.reports.figures.style import Gallery
from klqlit.reports.intervals import plain
from klqlit.reports.provenance import last_chapter
from klqlit.version import __version__


def write_report(experiment: Experiment, out: Path, paths: Sequence[str]) -> Path:
    """Write `index.html` and the figures' files; returns the page's path.

    Args:
        experiment: what is reported.
        out: the folder.
        paths: the folders that were asked for, as they were named.

    Raises:
        ValueError: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        gallery = Gallery(out / "figures")
        chapters = [task_chapter(experiment, task, gallery, f"t{i}") for i, task in enumerate(experiment.tasks, 1)]
        chapters.append(last_chapter(experiment))
        page = out / "index.html"
        text = (
            environment()
            .get_template("page.html.j2")
            .render(
                chapters=chapters,
                paths=paths,
                runs=len(experiment.runs),
                comparisons=len(experiment.comparisons),
                version=__version__,
                made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
                **assets(),
            )
        )
        page.write_text(printable(text), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written ({error.strerror}): give another folder") from error
    return page


def environment() -> Environment:
    """Templates that escape whatever is put into them."""
    made = Environment(
        loader=PackageLoader("klqlit.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"code": code, "plain": plain}
    return made


def code(text: str) -> Markup:
    """A sentence of ours, escaped, with what stands in backticks as code."""
    parts = [Markup.escape(part) for part in text.split("`")]
    return Markup("").join(
        part if i % 2 == 0 else Markup("<code>{}</code>").format(part) for i, part in enumerate(parts)
    )


def assets() -> dict[str, Markup]:
    """Style, script, and the script's fingerprint: no other script may run in the page."""
    folder = files("klqlit.reports")
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"style": Markup(style), "script": Markup(script), "script_hash": Markup(f"sha256-{digest}")}
