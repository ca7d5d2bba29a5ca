"""How a run was made and how it ended: what its configuration does not say."""

import json
import math
import platform
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import lightning as L
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities import rank_zero_warn

from klqlit.callbacks.fast_dev_run import is_fast_dev_run
from klqlit.files import replace_json
from klqlit.redaction import hide
from klqlit.version import __version__

PACKAGES = ("torch", "lightning", "transformers")


@runtime_checkable
class EndsRuns(Protocol):
    """A callback that may end a run before its time."""

    end_reason: str | None
    """Why it did; None where it did not."""


@final
class RunRecord(L.Callback):
    """Writes ``run.json`` into the run's folder: each start with versions and device, and the state of the run.

    The state is "running" until fit ends ("finished"), or an exception or a callback ends it early ("stopped"); a run
    that was killed stays "running". With the trainer's `fast_dev_run` there is no record.
    """

    def __init__(self) -> None:
        self._started = False

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if is_fast_dev_run(trainer):
            return
        steps = trainer.estimated_stepping_batches
        start = {
            "time": now(),
            "step": trainer.global_step,
            "steps": None if math.isinf(steps) else int(steps),
            "versions": versions(),
            "device": device_name(pl_module.device),
            "threads": torch.get_num_threads(),
            "ranks": trainer.world_size,
        }
        self._started = True
        write(trainer, state="running", starts=[*read(trainer).get("starts", []), start])

    @rank_zero_only
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if is_fast_dev_run(trainer):
            return
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # a connector sets it
        reasons = [c.end_reason for c in callbacks if isinstance(c, EndsRuns) and c.end_reason]
        state, reason = ("stopped", "; ".join(reasons)) if reasons else ("finished", None)
        write(trainer, state=state, starts=read(trainer).get("starts", []), reason=reason)

    @rank_zero_only
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # A mistake in the options stops no run: what stands in the folder is as it was.
        if self._started:
            reason = hide(f"{type(exception).__name__}: {exception}")
            # On a full disk the record stays as it is, and the exception is what the user must see.
            with suppress(OSError):
                write(trainer, state="stopped", starts=read(trainer).get("starts", []), reason=reason)


def versions() -> dict[str, str]:
    """What the run's numbers depend on."""
    return {"klqlit": __version__, "python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def device_name(device: torch.device) -> str:
    """What a person calls the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def now() -> str:
    """UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def write(trainer: L.Trainer, *, state: str, starts: list[dict[str, Any]], reason: str | None = None) -> None:
    """Replace the record."""
    record = {"state": state, "time": now(), "step": trainer.global_step, "reason": reason, "starts": starts}
    replace_json(Path(trainer.default_root_dir) / "run.json", json.dumps(record, indent=1) + "\n")


def read(trainer: L.Trainer) -> dict[str, Any]:
    """The record so far."""
    return read_record(trainer.default_root_dir)


def read_record(run_dir: str) -> dict[str, Any]:
    """The record in a run's folder. One that cannot be read, torn by a crash perhaps, counts as none."""
    path = Path(run_dir) / "run.json"
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        record = None
    if not _is_record(record):
        rank_zero_warn(f"{path} cannot be read and counts as none")
        return {}
    return record


def _is_record(value: Any) -> bool:
    """Whether it holds what is read of a record."""
    if not isinstance(value, dict) or not isinstance(value.get("state", ""), str):
        return False
    starts = value.get("starts", [])
    return isinstance(starts, list) and all(isinstance(start, dict) and "step" in start for start in starts)
