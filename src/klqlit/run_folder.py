"""A run's folder: whether it can be written; its checkpoints, where they are, which of them are whole."""

import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

MANIFEST = "manifest.json"
"""In a checkpoint that is a folder: the size of each of its files, written when all others were."""

META = "meta.pt"
"""In a checkpoint that is a folder: what is not sharded, as Lightning names it."""


def check_writable(run_dir: str) -> None:
    """See that a run can write in its folder. The folder itself is not made yet: a mistake elsewhere would leave it.

    Raises:
        ValueError: there is a file, or nothing can be made there.
    """
    way_out = "choose another --run_dir"
    try:
        existing = next(path for path in (Path(run_dir), *Path(run_dir).absolute().parents) if path.exists())
        if not existing.is_dir():
            raise ValueError(f"run_dir={run_dir!r}: {existing} is a file, and must be a folder; {way_out}")
        with tempfile.TemporaryDirectory(prefix=".klqlit-", dir=existing):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"nothing can be written to run_dir={run_dir!r} ({reason}); {way_out}") from error


def checkpoint_folder(run_dir: str | Path) -> Path:
    """Where a run keeps its checkpoints."""
    return Path(run_dir) / "checkpoints"


def checkpoint_path(folder: Path, step: int) -> Path:
    """The checkpoint of a step: a file, or a folder where the model is sharded."""
    return folder / f"step-{step}.ckpt"


def pending_path(path: Path) -> Path:
    """Where a checkpoint stands until it is whole, in the same file system."""
    return path.with_name(f".{path.name}.pending")


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a run, the latest first, torn ones included."""
    found = {step_of(path): path for path in folder.glob("step-*.ckpt") if path.stem.removeprefix("step-").isdigit()}
    return [found[step] for step in sorted(found, reverse=True)]


def step_of(path: Path) -> int:
    """The optimizer step of a checkpoint."""
    return int(path.stem.removeprefix("step-"))


def newest_checkpoint(run_dir: str) -> str | None:
    """The latest whole checkpoint of a run, if there is any; torn ones are named in a warning."""
    for path in checkpoints(checkpoint_folder(run_dir)):
        fault = fault_of(path)
        if fault is None:
            return str(path)
        rank_zero_warn(f"the checkpoint {path} is not whole ({fault}) and is passed over")
    return None


def fault_of(path: Path) -> str | None:
    """What makes a checkpoint unusable, None where it is whole.

    What is checked is that all of it is there; not each byte of it, which would take as long as loading it.
    """
    if not path.is_dir():
        return _fault_of_file(path)
    if not (path / MANIFEST).is_file():
        missing = [name for name in (META, ".metadata") if not (path / name).is_file()]
        return f"it lacks {' and '.join(missing)}" if missing else _fault_of_file(path / META)
    try:
        sizes = dict(json.loads((path / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return f"its {MANIFEST} cannot be read"
    for name, size in sizes.items():
        file = path / name
        if not file.is_file():
            return f"it lacks {name}"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes of {size}"
    return None


def _fault_of_file(path: Path) -> str | None:
    size = path.stat().st_size
    if size == 0:
        return f"{path.name} is empty"
    # torch writes zip archives, whose directory stands at the end.
    return None if zipfile.is_zipfile(path) else f"{path.name} was cut off after {size} bytes"


def complete(pending: Path, path: Path) -> None:
    """Let a checkpoint that was written beside its place appear there, whole, on the disk and not only in its cache."""
    if pending.is_dir():
        files = [file for file in pending.rglob("*") if file.is_file()]
        sizes = {str(file.relative_to(pending)): file.stat().st_size for file in files}
        (pending / MANIFEST).write_text(json.dumps(sizes), encoding="utf-8")
        for file in [*files, pending / MANIFEST]:
            _flush(file)
    _flush(pending)
    if path.exists() and (path.is_dir() or pending.is_dir()):
        # Only a file replaces a file in one move: else the old one, of the same step, is put out of sight first.
        remove(aside := path.with_name(f".{path.name}.old"))
        path.rename(aside)
        pending.rename(path)
        remove(aside)
    else:
        pending.replace(path)
    _flush(path.parent)


def remove(path: Path) -> None:
    """Delete a checkpoint, a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_pending(folder: Path) -> None:
    """Delete what a run that was killed left unfinished."""
    for path in folder.glob(".*step-*.ckpt*"):
        remove(path)


def set_later_aside(folder: Path, step: int) -> None:
    """Rename checkpoints after `step`: torn ones, and those of a run that was told to begin again before them."""
    for path in checkpoints(folder):
        if step_of(path) > step:
            remove(aside := path.with_name(f"{path.name}.aside"))
            path.rename(aside)
            rank_zero_info(f"{path} lies after the step this run goes on from, and is now {aside.name}")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
