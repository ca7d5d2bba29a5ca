"""Parser errors in one line: the option, its value, and the nearest valid name."""

import re
from difflib import get_close_matches

import lightning as L

from klqlit.options.classes import argument_names, meant, public_classes, takers, with_remedy

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

_GIVEN = re.compile(r"^\s*Given value: (.+)$", re.MULTILINE)
_KIND = re.compile(r"expected (?:an? \w+|one of [^;]+)")


def explain(message: str, listing: str = "`--print_config`") -> str:
    """The cause in a parser's message, after the path of the option it concerns.

    Args:
        message: of the parser.
        listing: what lists the options there are.
    """
    path: list[str] = []
    causes: list[str] = []
    for line in (line.strip() for line in message.splitlines()):
        key, problem = _KEY.match(line), _CLASS_PATH.match(line)
        if key:
            path.append(key[1])
        cause = key[2] if key else f"{problem[1]}: {problem[2]}".rstrip(": ") if problem else line
        if cause and not _BOILERPLATE.match(cause):
            causes.append(_plain(cause.removeprefix("- ")))
    given = _GIVEN.findall(message)
    cause = with_remedy(_joined(list(dict.fromkeys(causes)) or [message], given), given)
    place = ".".join(path)
    advice = _suggestion(cause, place, listing)
    if place and "unrecognized arguments: --" in cause:
        return cause.replace("unrecognized arguments: --", f"unrecognized arguments: --{place}.") + advice
    return f"{place}: {cause}{advice}".removeprefix(": ")


def _plain(cause: str) -> str:
    cause = re.sub(r"Expected a <class '(?:\w+\.)*(\w+)'>", r"expected a \1", cause)
    cause = re.sub(r"expected a (?=[aeiou])", "expected an ", cause)
    cause = re.sub(r"Expected a typing\.Literal\[([^\]]+)\]", r"expected one of \1", cause)
    if required := re.fullmatch(r"the following arguments are required: (.+)", cause):
        return "these options are required: " + ", ".join(f"--{name}" for name in required[1].split(", "))
    return re.sub(r"\. Got value: (.+)$", r", got '\1'", cause)


def _joined(causes: list[str], given: list[str]) -> str:
    """In one line; where a value could have been one of several kinds, these in one list, and the value."""
    kinds = [cause.removeprefix("expected ") for cause in causes if _KIND.fullmatch(cause)]
    if len(kinds) < len(causes):
        return "; ".join(causes)
    words = [word for kind in kinds if kind.startswith("one of ") for word in kind.removeprefix("one of ").split(", ")]
    kinds = [kind for kind in kinds if not kind.startswith("one of ")] + (
        [f"one of {', '.join(words)}"] if words else []
    )
    # The first is the value itself, the others what holds it.
    value = f", got '{given[0]:.60}'" if given and not given[0].startswith(("{", "NestedArg(")) else ""
    return f"expected {' or '.join(kinds)}{value}"


def _suggestion(cause: str, place: str, listing: str) -> str:
    if path := meant(cause):
        return f"; did you mean {path!r}?"
    unknown = _UNKNOWN.search(cause)
    if unknown is None:
        return ""
    name = next(group for group in unknown.groups() if group)
    # Any part of `--modle.tau` may be the wrong one.
    matches = [match for part in name.split(".") for match in _nearest(part)]
    if matches:
        return f"; did you mean {matches[0]!r}?"
    if classes := takers(name, place):
        return f"; it belongs to {' or '.join(classes)}: name the class as {place}.class_path"
    return f"; {listing} lists the options"


def _nearest(part: str) -> list[str]:
    names = _option_names()
    return [] if part in names else get_close_matches(part, names, n=1)


def _option_names() -> set[str]:
    """Names of all arguments of the public classes, of the Trainer, and of the command line itself."""
    classes = [L.Trainer, *public_classes().values()]
    names = {name for kind in classes for name in argument_names(kind)}
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
