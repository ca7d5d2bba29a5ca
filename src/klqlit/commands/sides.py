"""The two sides of a comparison: runs, exported models, files of completions, the reference, the dataset."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, final

from klqlit.commands.policies import PolicySettings, complete, has_policy, read_settings
from klqlit.judges.matching import Response, human_responses, read_completions
from klqlit.options.config_files import read_config
from klqlit.run_folder import newest_checkpoint

Letter = Literal["a", "b"]
Kind = Literal["run", "model", "file", "reference", "dataset"]

GENERATED: tuple[Kind, ...] = ("run", "model", "reference")


@final
@dataclass(kw_only=True, slots=True, frozen=True)
class Side:
    """One side, as it is named on the command line.

    Attributes:
        kind: what it is.
        source: as given.
        path: of the run folder, model or file.
        name: what to call it.
        run: the run's folder that it comes from, where there is one.
    """

    kind: Kind
    source: str
    path: Path
    name: str
    run: str | None = None


@final
@dataclass(kw_only=True, slots=True, frozen=True)
class Answers:
    """A side's completions, and the file in which they stand."""

    responses: list[Response]
    file: str


def find_sides(a: str, b: str) -> dict[Letter, Side]:
    """What two sources are.

    Raises:
        ValueError: there is nothing of use at one of them, or the two cannot be compared.
    """
    sides = [_find(a, "a"), _find(b, "b")]
    if sides[0].kind == sides[1].kind == "dataset":
        raise ValueError("--a dataset --b dataset: one side must have completions of its own")
    for longer in ("/".join(_parts(side.path)[-2:]) for side in sides), (side.source for side in sides):
        if sides[0].name == sides[1].name:
            sides = [replace(side, name=name) for side, name in zip(sides, longer, strict=True)]
    return {"a": sides[0], "b": sides[1]}


def answers_of(
    sides: Mapping[Letter, Side], *, config: str | None, max_prompts: int | None, folder: Path
) -> dict[Letter, Answers]:
    """The completions of both sides. Policies answer the same prompts from the same sampling seeds.

    Args:
        sides: of `find_sides`.
        config: a configuration whose prompts are taken, and whose settings those have that come without: models, the
            reference. None for the runs' own.
        max_prompts: prompts that policies answer; None for as many as their configuration says.
        folder: where completions are generated.

    Raises:
        ValueError: a side cannot be read or generated.
    """
    settings = _all_settings(sides, config, max_prompts)
    found: dict[Letter, Answers] = {}
    for letter, side in sides.items():
        if side.kind != "dataset":
            file = complete(slug(side.name), settings[letter], folder) if letter in settings else side.path
            found[letter] = Answers(responses=read_completions(file), file=str(file))
    for letter, side in sides.items():
        if side.kind == "dataset":
            (other,) = found.values()
            found[letter] = Answers(responses=human_responses(other.responses), file=other.file)
    return found


def _all_settings(
    sides: Mapping[Letter, Side], config: str | None, max_prompts: int | None
) -> dict[Letter, PolicySettings]:
    """The settings of each side that is to be generated."""
    generated = {letter: side for letter, side in sides.items() if side.kind in GENERATED}
    if config and not generated:
        raise ValueError(f"--config {config} is for completions to be generated, and neither side needs any: drop it")
    if not generated:
        return {}
    base = read_settings(config) if config else None
    own = {letter: _own_settings(side) for letter, side in sides.items()}
    prompts = base or own["a"] or own["b"]
    settings = {}
    for letter, side in generated.items():
        others = own["b" if letter == "a" else "a"]
        policy = _policy(side, own[letter], others, base)
        if policy is None or prompts is None:
            raise ValueError(
                f"--{letter} {side.source}: its prompts and how to sample are known from a run's folder on the other "
                "side, or from --config, and neither is there"
            )
        settings[letter] = policy.with_prompts(prompts, max_prompts)
    return settings


def _policy(
    side: Side, own: PolicySettings | None, others: PolicySettings | None, base: PolicySettings | None
) -> PolicySettings | None:
    """The side's policy, from its own run's settings, from the other side's, or from a configuration."""
    if side.kind == "reference":
        start = others or base
        return start and start.reference()
    checkpoint = newest_checkpoint(str(side.path)) if side.kind == "run" else None
    if own is not None and checkpoint is not None:
        return replace(own, checkpoint=checkpoint)
    frame = own or base or others
    return frame and frame.with_policy(str(side.path / "model" if side.kind == "run" else side.path))


def _own_settings(side: Side) -> PolicySettings | None:
    """Those of the run that a side comes from, if it is one with a policy."""
    file = Path(side.run or ".") / "config.yaml"
    return read_settings(file) if side.run and has_policy(read_config(file)) else None


def slug(name: str) -> str:
    """A name as a part of a path."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "unnamed"


def _find(source: str, letter: Letter) -> Side:
    source = os.path.normpath(source)
    path = Path(source).expanduser()
    if source == "reference":
        return Side(kind="reference", source=source, path=path, name=source)
    if source == "dataset":
        return Side(kind="dataset", source=source, path=path, name=source)
    if path.is_file():
        return Side(kind="file", source=source, path=path, name=_name(path), run=_run_of(path.parent))
    if (path / "config.yaml").is_file():
        return _find_run(source, path, letter)
    if (path / "config.json").is_file():
        return Side(kind="model", source=source, path=path, name=_name(path), run=_run_of(path.parent))
    what = "is neither a run's folder nor an exported model" if path.is_dir() else "is not there"
    raise ValueError(
        f"--{letter} {source} {what}: give a run's folder (with config.yaml), a folder with a Hugging Face model (with "
        "config.json), a file of completions (.jsonl), `reference` or `dataset`"
    )


def _find_run(source: str, path: Path, letter: Letter) -> Side:
    model = path / "model"
    online = has_policy(read_config(path / "config.yaml"))
    if online and (newest_checkpoint(str(path)) or (model / "config.json").is_file()):
        return Side(kind="run", source=source, path=path, name=_name(path), run=source)
    if (model / "config.json").is_file():
        # A stage before, such as supervised fine-tuning: what it exported is a policy like any other.
        return Side(kind="model", source=source, path=model, name=_name(path), run=source)
    raise ValueError(
        f"--{letter} {source} has neither a checkpoint nor an exported model: let `fit` reach its first checkpoint"
    )


def _name(path: Path) -> str:
    return _parts(path)[-1]


def _parts(path: Path) -> list[str]:
    """The parts of a path that tell sides apart."""
    *folders, last = path.resolve().parts
    last = re.sub(r"\.(jsonl|json|csv|parquet)(\.gz)?$", "", last)
    return folders if last in ("completions", "model") else [*folders, last]


def _run_of(folder: Path) -> str | None:
    return str(folder) if (folder / "config.yaml").is_file() else None
