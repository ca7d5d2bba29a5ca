"""Checkpoints, examined before anything is built from them: harmless, undamaged, and of this model."""

import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import lightning as L
import torch
from torch import Tensor

from klqlit.algorithms.base import FROZEN, RLHFModule
from klqlit.finetuning.base import Finetuning
from klqlit.sharded_checks import check_sharded

WAY_OUT = "leave ckpt_path out for the run folder's newest, or give another checkpoint that `fit` wrote"

PARTS = {"state_dict": dict, "loops": dict, "epoch": int, "global_step": int, "pytorch-lightning_version": str}
TRAINING_PARTS = {"optimizer_states": list, "lr_schedulers": list, "callbacks": dict}
"""What Lightning writes into a checkpoint: read by every command, and by one that trains on."""

COUNTERS = ("ready", "started", "processed", "completed")

BROKEN = (zipfile.BadZipFile, EOFError, RuntimeError, ArithmeticError, ValueError, OSError, struct.error)
"""What an archive of rubbish makes of `zipfile`."""


def check_checkpoint(path: str, module: L.LightningModule, *, training: bool) -> None:
    """Read a checkpoint without building anything, and compare it with the model.

    A file is read once: the checksum of each of its parts tells a flipped bit, which the loader would not notice.

    Args:
        path: a file, or a directory of a sharded checkpoint.
        module: whose weights it should hold.
        training: whether a run is to go on from it, and not only its weights be used.

    Raises:
        ValueError: it is no checkpoint, damaged, holds objects that could run code, or belongs to another model.
    """
    if Path(path).is_dir():
        return check_sharded(path)
    _check_archive(path)
    checkpoint = _load(path)
    parts = PARTS | (TRAINING_PARTS if training else {})
    _check_parts(path, checkpoint, parts)
    _check_weights(path, checkpoint["state_dict"], module)
    _check_progress(path, checkpoint["loops"])


def _check_archive(path: str) -> None:
    """The file is an archive as `torch.save` writes it: nothing packed, each part whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise _refusal(path, "is packed, as no checkpoint is, and could unpack without end")
            if sum(entry.file_size for entry in entries) > Path(path).stat().st_size:
                raise _refusal(path, "names parts that are larger than itself")
            damaged = archive.testzip()
    except (PermissionError, IsADirectoryError) as error:
        raise _refusal(path, f"cannot be read ({error.strerror})") from error
    except BROKEN as error:
        raise _refusal(path, f"is no checkpoint, was cut short, or is damaged ({_line(error)})") from error
    if damaged is not None:
        raise _refusal(path, f"is damaged: the checksum of its part {damaged!r} is wrong")


def _load(path: str) -> Any:
    try:
        # Mapped and not read: large tensors cost nothing here.
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(path, forbidden(error)) from error
    except Exception as error:  # whatever an archive of rubbish makes of the loader
        raise _refusal(path, f"cannot be read ({_line(error)})") from error


def forbidden(error: pickle.UnpicklingError) -> str:
    """What torch refused to build, in a few words: its own message advises to build it all the same."""
    named = re.search(r"(?:GLOBAL|class) (?:<class ')?([\w.]+\.\w+)", str(error))
    what = f", such as {named[1]}" if named else ""
    return f"holds objects other than tensors and plain values{what}: they are not loaded, since they could run code"


def _check_parts(path: str, checkpoint: Any, parts: Mapping[str, type]) -> None:
    if not isinstance(checkpoint, dict):
        raise _refusal(path, f"holds a {type(checkpoint).__name__}, and is no checkpoint of `fit`")
    for name, kind in parts.items():
        if name not in checkpoint:
            raise _refusal(path, f"lacks {name!r}, which `fit` writes into every checkpoint")
        value = checkpoint[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _refusal(path, f"holds a {type(value).__name__} as {name!r} in place of a {kind.__name__}")
    for name in ("epoch", "global_step"):
        if not 0 <= checkpoint[name] < 2**63:
            raise _refusal(path, f"says that it was written at {name} {checkpoint[name]:.3g}")


def _check_progress(path: str, loops: Mapping[Any, Any]) -> None:
    """Lightning's counters are counts."""
    for name, value in loops.items():
        if isinstance(value, Mapping):
            _check_progress(path, value)
        elif name in COUNTERS and not (isinstance(value, int) and 0 <= value < 2**63):
            raise _refusal(path, f"holds {value!r:.60} where Lightning counts what is {name}")


def _check_weights(path: str, saved: Mapping[Any, Any], module: L.LightningModule) -> None:
    """Names, shapes and kinds. Another floating-point precision is no other kind: weights are converted."""
    own = module.state_dict()
    for name, value in saved.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise _refusal(path, f"holds a {type(value).__name__} as the weight {name!r:.80}")
        if name in own:
            _check_weight(path, name, value, own[name])
    if isinstance(module, RLHFModule | Finetuning):
        frozen = FROZEN if isinstance(module, RLHFModule) else ()
        expected = {name for name in own if not name.startswith(frozen)}
        for names, verb in ((expected - saved.keys(), "lacks"), (saved.keys() - expected, "has weights beyond")):
            if names:
                what = f"{min(names)!r:.200}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                raise _refusal(path, f"belongs to another model: it {verb} {what} of this {type(module).__name__}")


def _check_weight(path: str, name: str, saved: Tensor, own: Tensor) -> None:
    if saved.shape != own.shape:
        shapes = f"{list(saved.shape)} in it and {list(own.shape)} here"
        raise _refusal(path, f"belongs to another model: the shape of {name} is {shapes}")
    if saved.is_floating_point() != own.is_floating_point():
        raise _refusal(path, f"holds {name} as {saved.dtype}, and here it is {own.dtype}")


@final
class RestoreCheck(L.Callback):
    """Knows whether a run has begun, and looks at what was restored before it does."""

    def __init__(self) -> None:
        self.begun = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            for weight, state in optimizer.state.items():
                for name, value in state.items():
                    if not isinstance(value, Tensor | int | float):
                        raise TypeError(f"the optimizer's {name} of a weight is a {type(value).__name__}")
                    if isinstance(value, Tensor) and value.dim() and value.shape != weight.shape:
                        shapes = f"{list(value.shape)} for a weight of the shape {list(weight.shape)}"
                        raise TypeError(f"the optimizer's {name} has the shape {shapes}")
        self.begun = True

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begun = True

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begun = True

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begun = True


@contextmanager
def restoring(path: str | None, check: RestoreCheck) -> Iterator[None]:
    """Say of an error before the run began that the checkpoint could not be restored.

    Raises:
        ValueError: in place of the error of a library.
    """
    try:
        yield
    except Exception as error:
        if path is None or check.begun or _is_ours(error):
            raise
        raise _refusal(path, f"cannot be restored ({_line(error)})") from error


def _is_ours(error: Exception) -> bool:
    """Raised in this package, with a message for its users."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    return isinstance(error, ValueError) and trace.tb_frame.f_globals["__name__"].startswith("klqlit.")


def _refusal(path: str, problem: str) -> ValueError:
    return ValueError(f"the checkpoint {path!r} {problem}: {WAY_OUT}")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
