"""One run at a time in a run's folder."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

try:
    import fcntl
except ImportError:  # no Unix
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""In the run's folder while a run is there, and after one that was killed."""


@contextmanager
def locked(run_dir: str) -> Iterator[None]:
    """Keep other runs out of a folder, which is made if need be; what nothing was written to is taken away again.

    The lock is the process's own: it ends with it, however it ends, and a forked worker does not have it. Where the
    file system knows no locks, a warning says so.

    Raises:
        ValueError: another process has the lock.
    """
    folder = Path(run_dir)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    descriptor = _take(run_dir)
    try:
        yield
    finally:
        if descriptor is not None:
            _give_back(folder / LOCK, descriptor)
        with suppress(OSError):
            for path in made:
                path.rmdir()


def _take(run_dir: str) -> int | None:
    """The open lock file; None where there can be no lock."""
    path = Path(run_dir) / LOCK
    if fcntl is None:
        _warn(run_dir, "this system has no fcntl")
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        _warn(run_dir, error.strerror)
        return None
    try:
        # Not `flock`, which a forked worker would share and hold when this process is dead.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 1000, 0).decode(errors="replace") or "another process"
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise ValueError(
                f"run_dir={run_dir!r} is in use by {holder}: wait until it ends, stop it, or choose another --run_dir; "
                f"if it is no more, its node having failed, delete {path}"
            ) from None
        _warn(run_dir, error.strerror)
        return None
    if not _is_at(path, descriptor):  # who had it has taken it away since it was opened
        os.close(descriptor)
        return _take(run_dir)
    with suppress(OSError):  # on a full disk it stays without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return descriptor


def _warn(run_dir: str, reason: str | None) -> None:
    rank_zero_warn(f"run_dir={run_dir!r} cannot be locked ({reason}): see to it that no other run uses it meanwhile")


def _give_back(path: Path, descriptor: int) -> None:
    with suppress(OSError):
        if _is_at(path, descriptor):
            path.unlink()
    os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
