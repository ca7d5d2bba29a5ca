"""What a judging model is asked: files of text with four places to fill, which users may copy and edit."""

import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import final

from klqlit.judges.base import Question

PLACEHOLDERS = ("prompt", "first", "second", "boundary")
_PLACES = re.compile("{(" + "|".join(PLACEHOLDERS) + ")}")
_PACKAGED = files("klqlit.judges").joinpath("templates")


@final
class Template:
    """The text that a judging model reads, with the prompt and both responses set in.

    ``{prompt}``, ``{first}``, ``{second}`` and ``{boundary}`` may each stand several times; any other brace is text.
    The boundary marks where a response begins and ends, see `boundary`.

    Args:
        source: a packaged template (`packaged_templates` lists them), or the path of a file in UTF-8.

    Attributes:
        name: of the packaged template, or of the file without its folder.
        text: with its placeholders.
        hash: the first 12 hexadecimal digits of the text's SHA-256.

    Raises:
        ValueError: there is no such template or file, or it lacks a placeholder.
    """

    def __init__(self, source: str) -> None:
        self.name, self.text = _read(source)
        missing = [f"{{{name}}}" for name in PLACEHOLDERS if f"{{{name}}}" not in self.text]
        if missing:
            raise ValueError(
                f"template={source!r} lacks {' and '.join(missing)}: a template holds {{prompt}}, {{first}} and "
                "{second}, and {boundary} in the lines that begin and end each of them"
            )
        self.hash = hashlib.sha256(self.text.encode()).hexdigest()[:12]

    def fill(self, question: Question) -> str:
        """The text for one question. What stands in prompt and responses is set in as it is and never read again."""
        values = {
            "prompt": question.prompt,
            "first": question.first,
            "second": question.second,
            "boundary": boundary(question),
        }
        return _PLACES.sub(lambda place: values[place[1]], self.text)


def boundary(question: Question) -> str:
    """16 hexadecimal digits for the lines around a question's texts.

    They come from a hash of all three texts. A response cannot imitate the lines, since the digits depend on the
    response itself and on the other one; a question asked again has the same digits, and so has its swapped order.
    """
    texts = json.dumps([question.prompt, *sorted((question.first, question.second))])
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


def packaged_templates() -> list[str]:
    """Names of the templates that come with this package."""
    return sorted(file.name.removesuffix(".txt") for file in _PACKAGED.iterdir() if file.name.endswith(".txt"))


def _read(source: str) -> tuple[str, str]:
    if source in packaged_templates():
        return source, _PACKAGED.joinpath(f"{source}.txt").read_text(encoding="utf-8")
    path = Path(source).expanduser()
    try:
        return path.name, path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(
            f"template={source!r} is neither one of {', '.join(packaged_templates())} nor a file that can be read "
            f"({error.strerror})"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"template={source!r} is not a text in UTF-8: {error}") from error
