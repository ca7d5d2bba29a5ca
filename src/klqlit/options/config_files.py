"""Configuration files: plain YAML, read strictly, that can say nothing but values.

A configuration names classes by `class_path`, which the command line builds only where their type fits. YAML's own
tags, which could build anything, are refused, and so is what a person cannot have meant: a name that stands twice, an
anchor that holds itself, anchors that multiply without end.
"""

import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, final

import torch
import yaml
from jsonargparse import get_loader, set_loader
from jsonargparse.typing import register_type
from omegaconf import OmegaConf
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from klqlit.redaction import hide, is_secret_variable

MAX_BYTES = 2**20
MAX_NODES = 5_000
"""Values that a file may hold once its anchors are written out: a real configuration holds a few hundred."""

MAX_DEPTH = 50

_KINDS = ("null", "bool", "int", "float", "str", "seq", "map", "merge", "timestamp")
TAGS = {f"tag:yaml.org,2002:{kind}" for kind in _KINDS}


@final
class MalformedConfig(yaml.YAMLError):
    """Valid YAML that no configuration may hold."""


def prepare_parser() -> None:
    """Have every YAML text of the command line read strictly, and environment variables without their secrets.

    Devices are written as their names: callbacks of Lightning have one as an argument's default.
    """
    set_loader("omegaconf+", load_text, (yaml.YAMLError,))
    OmegaConf.register_resolver("oc.env", environment_value, replace=True)
    register_type(torch.device)


def load_text(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        YAMLError: it is broken, or holds what no configuration may.
    """
    _check(text)
    try:
        return get_loader("yaml")(text)
    except (ValueError, RecursionError) as error:
        raise MalformedConfig(" ".join(str(error).split(";")[0].split())) from error


def read_config(path: str | Path) -> dict[Any, Any]:
    """The settings in a configuration file; references between them stay as they are.

    Raises:
        ValueError: it cannot be read, or holds no settings; the message names the file and the line.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise MalformedConfig(f"it has more than {MAX_BYTES} bytes: this is no configuration")
        config = load_text(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"the configuration {str(path)!r} cannot be read: {_reason(error)}") from error
    if not isinstance(config, dict):
        raise ValueError(f"the configuration {str(path)!r} holds no settings")
    return config


def check_configs(options: Iterable[str]) -> None:
    """Read the files that options name by `--config`, so that a mistake in one names the file.

    Raises:
        ValueError: as `read_config`.
    """
    arguments = list(options)
    named = [value for name, value in itertools.pairwise(arguments) if name == "--config"]
    named += [option.removeprefix("--config=") for option in arguments if option.startswith("--config=")]
    for path in named:
        if _exists(path):
            read_config(path)


def environment_value(name: str, default: Any = None) -> str:
    """What `${oc.env:NAME}` and `${oc.env:NAME,default}` mean: a variable's value, unless it is a secret.

    Configurations are saved with every run, and a secret would be saved with them.

    Raises:
        ValueError: the variable is not set and there is no default; or it holds a secret, by its name or its look.
    """
    value = os.environ.get(name, default)
    if name not in os.environ and value is None:
        raise ValueError(f"the environment variable {name} is not set: set it, or write ${{oc.env:{name},default}}")
    if is_secret_variable(name) or (isinstance(value, str) and hide(value) != value):
        raise ValueError(
            f"the environment variable {name} holds a secret, and a configuration must not: it is saved with the run. "
            "Give a judge the variable's name as api_key_variable; a class of your own can read the variable itself"
        )
    # As OmegaConf's own does with a default, so that oc.decode reads it as it reads a variable.
    return str(value)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # a name too long, or with a NUL: a text and no path
        return False


def _check(text: str) -> None:
    """Walk the nodes once, without recursion, children before what holds them."""
    root = yaml.compose(text, Loader=yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)
    sizes: dict[Node, int] = {}
    depths: dict[Node, int] = {}
    open_nodes: set[Node] = set()
    pending = [] if root is None else [root]
    while pending:
        node = pending[-1]
        if node in sizes:
            pending.pop()
        elif node in open_nodes:
            sizes[node] = 1 + sum(sizes[child] for child in _children(node))
            depths[node] = 1 + max((depths[child] for child in _children(node)), default=0)
            open_nodes.remove(node)
            if depths[node] > MAX_DEPTH:
                raise MalformedConfig(f"{_place(node)}: nested more than {MAX_DEPTH} deep")
            if sizes[node] > MAX_NODES:
                raise MalformedConfig(f"{_place(node)}: its anchors write out to more than {MAX_NODES:,} values")
        else:
            _check_node(node)
            open_nodes.add(node)
            inner = [child for child in _children(node) if child not in sizes]
            if any(child in open_nodes for child in inner):
                raise MalformedConfig(f"{_place(node)}: the anchor holds itself")
            pending += inner


def _check_node(node: Node) -> None:
    if node.tag not in TAGS:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise MalformedConfig(f"{_place(node)}: the tag {tag} is not allowed: name a class by `class_path`")
    if not isinstance(node, MappingNode):
        return
    first: dict[str, Node] = {}
    for key, _ in node.value:
        if not isinstance(key, ScalarNode):
            raise MalformedConfig(f"{_place(key)}: a name must be a word, not a list or an object")
        if key.value in first and key.tag != "tag:yaml.org,2002:merge":
            raise MalformedConfig(f"{_place(key)}: {key.value!r} stands twice (first on {_place(first[key.value])})")
        first[key.value] = key


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, SequenceNode) else []


def _place(node: Node) -> str:
    return f"line {node.start_mark.line + 1}"


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: broken YAML ({error.problem})"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return " ".join(str(error).split())
