"""Files of checkpoints, examined before anything is built from them: harmless, whole and undamaged."""

import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from klqlit.strategies.sharded_checks import check_sharded

WAY_OUT = "name another one with ckpt_path, or delete it to use the one before it"

PARTS = {"state_dict": dict, "loops": dict, "epoch": int, "global_step": int, "pytorch-lightning_version": str}
TRAINING_PARTS = {"optimizer_states": list, "lr_schedulers": list, "callbacks": dict}
"""What Lightning writes into a checkpoint: read by every command, and by one that trains on."""

COUNTERS = ("ready", "started", "processed", "completed")

BROKEN = (zipfile.BadZipFile, EOFError, RuntimeError, ArithmeticError, ValueError, OSError, struct.error)
"""What an archive of rubbish makes of `zipfile`."""


def examine(path: str) -> None:
    """Read a checkpoint without building anything from it.

    A file is read once: the checksum of each of its parts tells a flipped bit, which the loader would not notice.

    Args:
        path: a file, or a directory of a sharded checkpoint.

    Raises:
        ValueError: it is damaged, or holds objects that could run code.
    """
    if Path(path).is_dir():
        return check_sharded(path)
    _check_archive(path)
    load(path)


def check_contents(path: str, *, training: bool) -> None:
    """See that a file, once examined, is a checkpoint.

    Args:
        path: a file; a directory is left to the strategy that reads it.
        training: whether a run is to go on from it, and not only its weights be used.

    Raises:
        ValueError: something that `fit` writes is missing or of another kind.
    """
    if Path(path).is_dir():
        return
    checkpoint = load(path)
    _check_parts(path, checkpoint, PARTS | (TRAINING_PARTS if training else {}))
    _check_progress(path, checkpoint["loops"])


def _check_archive(path: str) -> None:
    """The file is an archive as `torch.save` writes it: nothing packed, each part whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            larger = sum(entry.file_size for entry in entries) > Path(path).stat().st_size
            damaged = None if packed or larger else archive.testzip()
    except (PermissionError, IsADirectoryError) as error:
        raise refusal(path, f"cannot be read ({error.strerror})") from error
    except BROKEN as error:
        raise refusal(path, f"is no checkpoint, was cut short, or is damaged ({in_one_line(error)})") from error
    if packed or larger:
        raise refusal(path, "is packed, as no checkpoint is, and could unpack without end")
    if damaged is not None:
        raise refusal(path, f"is damaged: the checksum of its part {damaged!r} is wrong")


def load(path: str) -> Any:
    """What is in a file, its tensors mapped and not read.

    Raises:
        ValueError: it holds more than tensors and plain values, or cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise refusal(path, _forbidden(error)) from error
    except Exception as error:  # whatever an archive of rubbish makes of the loader
        raise refusal(path, f"cannot be read ({in_one_line(error)})") from error


def _forbidden(error: pickle.UnpicklingError) -> str:
    """What torch refused to build, in a few words: its own message advises to build it all the same."""
    named = re.search(r"(?:GLOBAL|class) (?:<class ')?([\w.]+\.\w+)", str(error))
    what = f", such as {named[1]}" if named else ""
    return f"holds objects other than tensors and plain values{what}: they are not loaded, since they could run code"


def _check_parts(path: str, checkpoint: Any, parts: Mapping[str, type]) -> None:
    if not isinstance(checkpoint, dict):
        raise refusal(path, f"holds a {type(checkpoint).__name__}, and is no checkpoint of `fit`")
    for name, kind in parts.items():
        if name not in checkpoint:
            raise refusal(path, f"lacks {name!r}, which `fit` writes into every checkpoint")
        value = checkpoint[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise refusal(path, f"holds a {type(value).__name__} as {name!r} in place of a {kind.__name__}")
    if checkpoint.get("optimizer_states") == [] and "optimizer_states" in parts:
        raise refusal(path, "lacks the state of its optimizer")
    for name in ("epoch", "global_step"):
        if not 0 <= checkpoint[name] < 2**63:
            raise refusal(path, f"says that it was written at {name} {checkpoint[name]:.3g}")


def _check_progress(path: str, loops: Mapping[Any, Any]) -> None:
    """Lightning's counters are counts."""
    for name, value in loops.items():
        if isinstance(value, Mapping):
            _check_progress(path, value)
        elif name in COUNTERS and not (isinstance(value, int) and 0 <= value < 2**63):
            raise refusal(path, f"holds {value!r:.60} where Lightning counts what is {name}")


def refusal(path: str, problem: str) -> ValueError:
    """An error that names the checkpoint and the way out."""
    return ValueError(f"the checkpoint {path!r} {problem}: {WAY_OUT}")


def in_one_line(error: Exception) -> str:
    """What a library said."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
