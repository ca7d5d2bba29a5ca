"""Checkpoints compared with the model that is to be restored, before and while it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import lightning as L
from torch import Tensor

from klqlit.algorithms.base import FROZEN, RLHFModule
from klqlit.finetuning.base import Finetuning
from klqlit.models.restoring import check_fits
from klqlit.resuming.checkpoint_files import in_one_line, load, refusal


def check_weights(path: str, module: L.LightningModule) -> None:
    """Refuse a checkpoint of another model before anything is restored.

    Another floating-point precision is no other model: weights are converted. A directory is compared by the strategy
    that reads it, and a module of another base by its own strict loading.

    Raises:
        ValueError: names, shapes or kinds of weights differ.
    """
    if Path(path).is_dir():
        return
    saved, own = load(path)["state_dict"], module.state_dict()
    for name, value in saved.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise refusal(path, f"holds a {type(value).__name__} as the weight {name!r:.80}")
        if name in own and value.is_floating_point() != own[name].is_floating_point():
            raise refusal(path, f"holds {name} as {value.dtype}, and here it is {own[name].dtype}")
    if isinstance(module, RLHFModule | Finetuning):
        frozen = FROZEN if isinstance(module, RLHFModule) else ()
        try:
            check_fits(saved, {name: value for name, value in own.items() if not name.startswith(frozen)})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def check_loops(path: str, trainer: L.Trainer) -> None:
    """Refuse a checkpoint without all that Lightning counts: it would begin again where something is missing.

    Raises:
        ValueError: something is missing.
    """
    if Path(path).is_dir():
        return
    checkpoint = load(path)
    # Lightning brings what another version of it wrote up to date.
    if checkpoint["pytorch-lightning_version"] == L.__version__:
        missing = _missing(checkpoint["loops"].get("fit_loop"), trainer.fit_loop.state_dict())
        if missing is not None:
            raise refusal(path, f"lacks the progress of its training ({missing or 'all of it'})")


def _missing(saved: Any, expected: dict[str, Any]) -> str | None:
    """The first name that is not there, all the way down."""
    if not isinstance(saved, dict):
        return ""
    for name, value in expected.items():
        if name not in saved:
            return name
        if isinstance(value, dict) and (inner := _missing(saved[name], value)) is not None:
            return f"{name}.{inner}" if inner else name
    return None


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
        raise refusal(path, f"cannot be restored ({in_one_line(error)})") from error


def _is_ours(error: Exception) -> bool:
    """Raised in this package, with a message for its users."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    return isinstance(error, ValueError) and trace.tb_frame.f_globals["__name__"].startswith("klqlit.")
