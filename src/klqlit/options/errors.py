"""Parser errors in one line: the option, its value, and the nearest valid name."""

import re
from difflib import get_close_matches
from inspect import signature

import lightning as L

import klqlit

# What the parser adds around the cause: each union it tried, and the whole configuration it was given.
_BOILERPLATE = re.compile(
    r"^(- )?(Does not validate against any of the Union|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>"
    r"|Expected a path but)"
)
_KEY = re.compile(r'^(?:- )?Parser key "([^"]+)":\s*(.*)$')
_CLASS_PATH = re.compile(r"^(?:- )?Problem with given class_path '([^']+)':\s*(.*)$")
_UNKNOWN = re.compile(
    r"Option '([^']+)' is not accepted|unrecognized arguments: -*([\w.]+)|Key '([^']+)' is not expected"
)


def explain(message: str) -> str:
    """The cause in a parser's message, after the path of the option it concerns."""
    path: list[str] = []
    causes: list[str] = []
    for line in (line.strip() for line in message.splitlines()):
        key, problem = _KEY.match(line), _CLASS_PATH.match(line)
        if key:
            path.append(key[1])
        cause = key[2] if key else f"{problem[1]}: {problem[2]}".rstrip(": ") if problem else line
        if cause and not _BOILERPLATE.match(cause):
            causes.append(cause.removeprefix("- "))
    cause = _plain("; ".join(dict.fromkeys(causes)) or message)
    return f"{'.'.join(path)}: {cause}{_suggestion(cause)}" if path else f"{cause}{_suggestion(cause)}"


def _plain(cause: str) -> str:
    cause = re.sub(r"Expected a <class '(?:\w+\.)*(\w+)'>", r"expected a \1", cause)
    cause = re.sub(r"Expected a typing\.Literal\[([^\]]+)\]", r"expected one of \1", cause)
    return re.sub(r"\. Got value: (.+)$", r", got '\1'", cause)


def _suggestion(cause: str) -> str:
    unknown = _UNKNOWN.search(cause)
    if unknown is None:
        return ""
    name = next(group for group in unknown.groups() if group)
    # Any part of `--modle.tau` may be the wrong one.
    matches = [match for part in name.split(".") for match in _nearest(part)]
    return f"; did you mean {matches[0]!r}?" if matches else "; `--print_config` lists the options"


def _nearest(part: str) -> list[str]:
    names = _option_names()
    return [] if part in names else get_close_matches(part, names, n=1)


def _option_names() -> set[str]:
    """Names of all arguments of the public classes, of the Trainer, and of the command line itself."""
    classes = [L.Trainer, *(klqlit.__getattr__(name) for name in klqlit.__all__ if name != "__version__")]
    names = {name for kind in classes for name in signature(kind.__init__).parameters}
    top = {
        "model",
        "data",
        "trainer",
        "config",
        "run_dir",
        "ckpt_path",
        "resume",
        "seed_everything",
        "checkpoint",
        "class_path",
    }
    return (names | top | {"class_path"}) - {"self", "base", "args", "kwargs"}
