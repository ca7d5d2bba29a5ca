"""Rewards as plain data for a judge's identity: equal descriptions give equal scores, in every process."""

import enum
import functools
import inspect
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import CodeType
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from klqlit.judges.cache import canonical
from klqlit.judges.local import digest_of, tensor_digest, tokenizer_digest, weights_digest
from klqlit.rewards.base import Reward
from klqlit.version import __version__

MAX_DEPTH = 8
"""Objects within objects are described as far down as this, and by their class alone below."""
MAX_LENGTH = 200
"""A setting whose description is longer in characters stands as a digest: the identity is kept with every judgment."""

_MODULES_OWN = frozenset(vars(nn.Module())) - {"_buffers"}
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+|\bid=\d+")


def described(reward: Reward) -> dict[str, Any]:
    """Class, code, weights and attributes of a reward, and of the rewards within it."""
    found = {**_reward(reward), "version": __version__}
    within = {name: _reward(part) for name, part in reward.named_modules() if name and isinstance(part, Reward)}
    if reward.state_dict():
        found["weights"] = weights_digest(reward)
    return found | ({"within": within} if within else {})


def _reward(reward: Reward) -> dict[str, Any]:
    kinds = [kind for kind in type(reward).__mro__ if kind not in Reward.__mro__]
    settings = {name: value for name, value in vars(reward).items() if name not in _MODULES_OWN}
    plain = {name: _short(plain_form(value)) for name, value in sorted(settings.items()) if name != "_buffers" or value}
    return {**plain, "class": _path(type(reward)), "code": digest_of("".join(map(_source, kinds)))}


def _short(plain: Any) -> Any:
    text = canonical(plain)
    return plain if len(text) <= MAX_LENGTH else f"{type(plain).__name__} {digest_of(text)}"


def plain_form(value: Any, above: tuple[int, ...] = ()) -> Any:
    """A value as JSON's kinds of values, alike in every process: no memory address, no order of a set.

    Args:
        value: anything.
        above: identities of the objects that hold this one.
    """
    if value is None or (isinstance(value, str | int | float | bool) and not isinstance(value, enum.Enum)):
        return value
    if id(value) in above or len(above) >= MAX_DEPTH:
        return f"{_path(type(value))} ..."
    down = functools.partial(plain_form, above=(*above, id(value)))
    if isinstance(value, Mapping):
        return {canonical(down(name)): down(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [down(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((down(item) for item in value), key=canonical)
    if isinstance(value, Tensor | nn.Module | np.ndarray | PreTrainedTokenizerBase):
        return _numbers(value, down)
    if callable(value):
        return _callable(value, down)
    return _object(value, down)


def _numbers(value: Any, down: Any) -> Any:
    """What is described by its content at large."""
    if isinstance(value, PreTrainedTokenizerBase):
        return f"{_path(type(value))} {tokenizer_digest(value)}"
    if isinstance(value, nn.Module):
        return f"{_path(type(value))} {weights_digest(value)}"
    if isinstance(value, Tensor):
        return f"Tensor {tensor_digest(value)}"
    if value.dtype.kind in "biufc":
        return f"ndarray {tensor_digest(torch.from_numpy(np.array(value)))}"
    return [str(value.dtype), down(value.tolist())]


def _callable(value: Any, down: Any) -> Any:
    """By name and code, with what is bound to it."""
    if isinstance(value, functools.partial):
        return {"partial": down(value.func), "args": down(value.args), "keywords": down(value.keywords)}
    if inspect.ismethod(value):
        return {"method": down(value.__func__), "of": down(value.__self__)}
    if inspect.isfunction(value):
        name = f"{_path(value)} {digest_of(_source(value) + canonical(_code(value.__code__)))}"
        cells = {name: cell for name, cell in inspect.getclosurevars(value).nonlocals.items() if cell is not value}
        bound = {"defaults": value.__defaults__, "keywords": value.__kwdefaults__, "closure": cells}
        bound = {kind: item for kind, item in bound.items() if item}
        return {"function": name, **down(bound)} if bound else name
    if isinstance(value, type):
        return f"{_path(value)} {digest_of(_source(value))}"
    if inspect.isbuiltin(value):
        return {"method": value.__qualname__, "of": down(value.__self__)} if _is_bound(value) else _path(value)
    return _object(value, down)


def _is_bound(value: Any) -> bool:
    return value.__self__ is not None and not inspect.ismodule(value.__self__)


def _object(value: Any, down: Any) -> Any:
    """By class, code and attributes; without attributes, by what it prints unless that holds an address."""
    kind = type(value)
    if isinstance(value, enum.Enum):
        return f"{_path(kind)}.{value.name} {digest_of(_source(kind))}"
    if isinstance(value, Path | re.Pattern):
        return [kind.__name__, str(value)] if isinstance(value, Path) else ["Pattern", value.pattern, value.flags]
    own = _attributes(value)
    if own:
        return {"class": f"{_path(kind)} {digest_of(_source(kind))}", "attributes": down(own)}
    text = repr(value)
    return _path(kind) + ("" if _ADDRESS.search(text) else f" {text}") + f" {digest_of(_source(kind))}"


def _attributes(value: Any) -> dict[str, Any]:
    """What an object holds in its dict and in its slots."""
    found: dict[str, Any] = {}
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                with suppress(AttributeError):
                    found[name] = object.__getattribute__(value, name)
    with suppress(TypeError):
        found |= vars(value)
    return found


def _path(code: Any) -> str:
    return f"{code.__module__}.{code.__qualname__}"


def _code(code: CodeType) -> list[Any]:
    """What tells two functions of one name and file apart, such as two lambdas."""
    constants = [_code(item) if isinstance(item, CodeType) else plain_form(item) for item in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), list(map(str, constants))]


def _source(code: Any) -> str:
    """The whole file of a class or function, since what it calls may be edited, too.

    Where there is none, as in an interactive session, a text that no other description has. What is compiled has none.
    """
    try:
        file = Path(inspect.getsourcefile(code) or "")
    except (OSError, TypeError):
        file = Path()
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    compiled = isinstance(code, type) and code.__module__ != "__main__" and code.__module__ in sys.modules
    return "" if compiled else uuid4().hex
