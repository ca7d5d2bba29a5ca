"""What starting in a run's folder means: begin, go on, or nothing left to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from lightning.pytorch.utilities import rank_zero_info

from klqlit.callbacks.options_record import OptionsRecord
from klqlit.callbacks.run_record import read_record
from klqlit.resuming.checkpoint_files import examine
from klqlit.run_folder import META, checkpoint_folder, fault_of, newest_checkpoint, step_of

Resume = Literal["auto", "never"]

OWN_PLACE = ("config", "run_dir", "ckpt_path", "resume", "checkpoint.directory", "trainer.default_root_dir")
"""Options that say where a run is, not what it does: a folder may be moved."""

ENDS = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time")

KINDS = ("model.class_path", "data.class_path")
"""Options that cannot change within a run."""


class AlreadyFinished(RuntimeError):
    """There is nothing left to do; the message says what would make the run longer."""


@final
@dataclass(kw_only=True, slots=True)
class Start:
    """Where a run begins.

    Attributes:
        checkpoint: what it goes on from; None for the weights the model starts from.
        step: optimizer steps behind it in its own folder.
    """

    checkpoint: str | None
    step: int


def begin(options: Mapping[str, str], *, run_dir: str, ckpt_path: str | None, resume: Resume) -> Start:
    """Where `fit` starts in a run's folder. Differences from the options of the checkpoint are named.

    Args:
        options: of this start, by dotted name.
        run_dir: the folder.
        ckpt_path: in the folder's own checkpoints: go back to it. Elsewhere: what the run begins from while its folder
            has no checkpoint of its own.
        resume: "never" refuses a folder that has checkpoints.

    Raises:
        AlreadyFinished: the run has reached its configured end.
        ValueError: there is no whole checkpoint at `ckpt_path`, `resume` forbids going on, or the checkpoint belongs to
            another algorithm or kind of data.
    """
    newest = newest_checkpoint(run_dir)
    if resume == "never" and newest is not None:
        raise ValueError(f"resume=never, but {run_dir} has the checkpoint {newest}: choose another run_dir, or go on")
    own = checkpoint_folder(run_dir).resolve()
    if ckpt_path is not None and (newest is None or Path(ckpt_path).resolve().parent == own):
        newest = existing(ckpt_path)
    elif ckpt_path is not None:
        rank_zero_info(f"ckpt_path={ckpt_path} is where this run began; it has gone on since")
    if newest is None:
        return Start(checkpoint=None, step=0)
    examine(newest)
    saved = saved_options(newest)
    changed = differences(saved, options)
    if ckpt_path is None and is_finished(run_dir) and not any(is_later(options, saved, name) for name in ENDS):
        raise AlreadyFinished(_finished(run_dir, newest, changed))
    _tell(newest, changed)
    inside = Path(newest).resolve().parent == own
    return Start(checkpoint=newest, step=step_of(Path(newest)) if inside else 0)


def existing(ckpt_path: str) -> str:
    """The path, if there is a whole checkpoint.

    Raises:
        ValueError: there is none.
    """
    if not Path(ckpt_path).exists():
        raise ValueError(f"there is no checkpoint at ckpt_path={ckpt_path!r}; leave it out for the run folder's newest")
    if (fault := fault_of(Path(ckpt_path))) is not None:
        raise ValueError(f"the checkpoint at ckpt_path={ckpt_path!r} is not whole: {fault}; choose another")
    return ckpt_path


def flat(options: Any, name: str = "") -> dict[str, str]:
    """Nested options by dotted name, as on the command line, where `init_args` is left out; values as text."""
    if isinstance(options, Mapping) and options:
        parts = [("" if key == "init_args" else str(key), value) for key, value in options.items()]
    elif isinstance(options, list | tuple) and options:
        parts = [(str(i), value) for i, value in enumerate(options)]
    else:
        return {name: str(options)}
    found: dict[str, str] = {}
    for part, value in parts:
        found |= flat(value, ".".join(filter(None, (name, part))))
    return found


def saved_options(checkpoint: str) -> dict[str, str]:
    """Options of the start that saved a checkpoint; empty where it was not saved by `fit` of the command line."""
    file = Path(checkpoint) / META if Path(checkpoint).is_dir() else Path(checkpoint)
    # Mapped: the weights are not read.
    callbacks = torch.load(file, mmap=True, weights_only=True, map_location="cpu").get("callbacks", {})
    return callbacks.get(OptionsRecord.__qualname__, {}).get("options", {})


def differences(saved: Mapping[str, str], present: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """By name, the saved and the present value of each option that differs; "-" where there is none."""
    if not saved:
        return {}
    names = [name for name in dict.fromkeys([*saved, *present]) if name not in OWN_PLACE]
    both = {name: (saved.get(name, "-"), present.get(name, "-")) for name in names}
    return {name: (old, new) for name, (old, new) in both.items() if old != new}


def is_finished(run_dir: str) -> bool:
    """Whether the run's record says so and its exported model is there."""
    return (Path(run_dir) / "model").is_dir() and read_record(run_dir).get("state") == "finished"


def is_later(options: Mapping[str, str], saved: Mapping[str, str], name: str) -> bool:
    """Whether a run's end now lies after the saved one: a number is larger, or there is no end any more."""
    old, new = saved.get(name, "None"), options.get(name, "None")
    endless = ("-1", "None")
    if old == new or old in endless:
        return False
    return new in endless or not (old.isdigit() and new.isdigit()) or int(new) > int(old)


def _tell(checkpoint: str, changed: Mapping[str, tuple[str, str]]) -> None:
    """Name what changed, and refuse what cannot.

    Raises:
        ValueError: the class of model or data is another.
    """
    for name in KINDS:
        if name in changed:
            old, new = changed[name]
            raise ValueError(
                f"{checkpoint} was saved with {name}={old}, and this is {new}: choose another run_dir, or the old class"
            )
    if changed:
        rank_zero_info("options have changed since the checkpoint; from here on the new ones are in force:")
        for line in _lines(changed):
            rank_zero_info(line)


def _finished(run_dir: str, checkpoint: str, changed: Mapping[str, tuple[str, str]]) -> str:
    message = (
        f"the run in {run_dir} is finished ({Path(checkpoint).stem.replace('-', ' ')}): nothing is left to do. Raise "
        "trainer.max_epochs, trainer.max_steps or trainer.max_time to go on, or choose another run_dir"
    )
    if changed:
        message += ". Without effect are the changed options:\n" + "\n".join(_lines(changed))
    return message


def _lines(changed: Mapping[str, tuple[str, str]]) -> list[str]:
    return [f"  {name}: {old} -> {new}" for name, (old, new) in changed.items()]
