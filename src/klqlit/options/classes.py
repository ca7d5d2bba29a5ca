"""What a parser's message about a class leaves out: the name that was meant, the missing class or its methods."""

import inspect
import re
import sys
from difflib import get_close_matches
from typing import Any

import lightning as L

import klqlit

KINDS: dict[str, type] = {"model": L.LightningModule, "data": L.LightningDataModule}
"""What stands for an option whose class is not named."""

_NO_ATTRIBUTE = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_BARE_NAME = re.compile(r"Expected a dot import path string: (\w+)")
_ABSTRACT = re.compile(r"Expected an instantiatable class, but(?: [\w.]+)? is abstract")


def meant(cause: str) -> str | None:
    """The import path of the class that a misspelt one comes nearest to, in the module that it names."""
    if (missing := _NO_ATTRIBUTE.search(cause)) and missing[1] in sys.modules:
        module, name = missing.groups()
    elif bare := _BARE_NAME.search(cause):
        module, name = "klqlit", bare[1]
    else:
        return None
    names = [each for each in dir(sys.modules[module]) if not each.startswith("_")]
    near = get_close_matches(name, names, n=1)
    return f"{module}.{near[0]}" if near else None


def public_classes() -> dict[str, type]:
    """All that can be imported from klqlit, by their paths."""
    return {f"klqlit.{name}": klqlit.__getattr__(name) for name in klqlit.__all__ if name != "__version__"}


def takers(option: str, place: str) -> list[str]:
    """Paths of the public classes that could stand at a place and take an option."""
    name = option.removeprefix(f"{place}.").split(".")[0]
    return [
        path
        for path, kind in public_classes().items()
        if place in KINDS and _is_one(kind, KINDS[place]) and name in argument_names(kind)
    ]


def argument_names(kind: type) -> set[str]:
    """Of a class and of those it is made of, to which it hands on what it does not know."""
    return {name for each in kind.__mro__ if each is not object for name in inspect.signature(each).parameters}


def with_remedy(cause: str, given: list[str]) -> str:
    """The cause where it is that a class is abstract, with the classes of its kind, or with what it lacks.

    Args:
        cause: of an error.
        given: texts of the values that the parser was given, the class's import path among them.
    """
    if not _ABSTRACT.search(cause):
        return cause
    paths = dict.fromkeys(path for text in [cause, *given] for path in re.findall(r"\w+(?:\.\w+)+", text))
    kinds = {path: kind for path in paths if inspect.isabstract(kind := _imported(path))}
    lacking = [f"{path} is abstract: {_remedy(kind)}" for path, kind in kinds.items()]
    return _ABSTRACT.sub("; ".join(lacking), cause) if lacking else cause


def _remedy(kind: Any) -> str:
    if ready := [path for path, each in public_classes().items() if _is_one(each, kind)]:
        return f"name a class of its kind as class_path, such as {' or '.join(ready)}"
    return f"it does not define {', '.join(sorted(kind.__abstractmethods__))}"


def _is_one(kind: type, base: type) -> bool:
    return issubclass(kind, base) and not inspect.isabstract(kind)


def _imported(path: str) -> Any:
    """What is there by a name; None where nothing is. A text is no reason to import anything."""
    module, _, name = path.rpartition(".")
    if module == "klqlit" and name in klqlit.__all__:
        return klqlit.__getattr__(name)
    return vars(sys.modules[module]).get(name) if module in sys.modules else None
