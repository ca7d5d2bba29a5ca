"""Options that take a function: what a configuration may build for them.

Where a class is expected, the parser accepts its subclasses alone. Where a function is, it would build any class and
call any function with arguments of the configuration's choice, a shell command for instance.
"""

import inspect
from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from jsonargparse import Namespace


def check_factories(config: Any, option: str = "") -> None:
    """See that each option for a function has a function by its name, or a class of what the function is to return.

    Args:
        config: parsed; nothing of it is built yet.
        option: its place in the whole configuration.

    Raises:
        ValueError: something else would be built or called.
    """
    if isinstance(config, list | tuple):
        for i, part in enumerate(config):
            check_factories(part, f"{option}.{i}")
        return
    if not isinstance(config, Namespace | Mapping):
        return
    parts = dict(config.items()) if isinstance(config, Mapping) else vars(config)
    hints = _hints(parts["class_path"]) if "class_path" in parts else {}
    for name, value in parts.items():
        if name == "init_args" and isinstance(value, Namespace):
            for argument, inner in vars(value).items():
                place = f"{option}.{argument}".lstrip(".")
                _check_value(inner, _returned(hints[argument]) if argument in hints else None, place)
                check_factories(inner, place)
        else:
            check_factories(value, f"{option}.{name}".lstrip("."))


def _check_value(value: Any, returned: list[Any] | None, option: str) -> None:
    """`returned`: what functions that the option takes are to return; None where nothing is known of the option."""
    if returned == [] or not isinstance(value, Namespace) or "class_path" not in value:
        return
    path = value["class_path"]
    wanted = tuple(kind for kind in returned or [] if isinstance(kind, type) and kind not in (object, type(None)))
    found = resolve_name(path)
    if returned is None and inspect.isclass(found):
        return
    kind = found if inspect.isclass(found) else _annotations(found).get("return")
    if not (wanted and inspect.isclass(kind) and issubclass(kind, wanted)):
        what = " or ".join(kind.__name__ for kind in wanted)
        raise ValueError(
            f"{option}: {path} with arguments of its own is not allowed here, since it would be called with them; name "
            + (
                f"a class of {what}, or a function by its import path"
                if what
                else "a function by its import path alone"
            )
        )


def _hints(path: str) -> dict[str, Any]:
    """Of all arguments, those that a class hands on to the classes it is made of too."""
    found = resolve_name(path)
    kinds = reversed(found.__mro__) if inspect.isclass(found) else ()
    functions = [vars(kind)["__init__"] for kind in kinds if "__init__" in vars(kind)] or [found]
    return {name: hint for function in functions for name, hint in _annotations(function).items()}


def _annotations(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # compiled, or annotated with names that are not there
        return {}


def _returned(hint: Any) -> list[Any]:
    """What the functions that a hint allows return."""
    if get_origin(hint) in (Union, UnionType):
        return [kind for part in get_args(hint) for kind in _returned(part)]
    if hint is Callable or hint == Callable[..., Any] or get_origin(hint) is Callable:
        return [get_args(hint)[-1] if get_args(hint) else object]
    return []
