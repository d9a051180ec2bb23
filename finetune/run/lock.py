"""One process at a time works on a run."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from finetune.core.errors import RecipeError
from finetune.core.places import name_place

LOCK = ".lock"
"""File in a run's folder that the process at work on it holds; the system lets go of it when the process ends."""

NO_LOCKS = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What the system says where a disk has no locks."""

_held: set[FileIO] = set()


@contextmanager
def hold(run: Path) -> Iterator[None]:
    """Keeps other processes from working on a run, those of other machines too where the disk shares its locks.

    The lock is the system's (`flock`, which NFS and SMB pass on to their server), so it ends with the process, however
    that ends; workers that outlive it do not keep it. Some network disks have no locks. There the file itself is the
    lock: it stays when the process is killed, and the refusal says whose it was.

    Args:
        run: The run's folder, which is made where there is none.

    Raises:
        RecipeError: If another process is at work on it.
        OSError: If nothing can be written there.
    """
    run.mkdir(parents=True, exist_ok=True)
    with name_place(run / LOCK):
        file, is_locked = _take(run)
    _held.add(file)
    try:
        with name_place(run / LOCK):
            _write(file, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        _held.discard(file)
        if not file.closed:  # as it is in a process that was forked meanwhile
            with suppress(OSError):
                _write(file, "") if is_locked else (run / LOCK).unlink(missing_ok=True)
            file.close()


def _take(run: Path) -> tuple[FileIO, bool]:
    """Opens and locks the file; false where the disk has no locks, and the file was made instead."""
    place = run / LOCK
    try:
        file, is_new = FileIO(place, "x+"), True
    except FileExistsError:
        file, is_new = FileIO(place, "r+"), False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        is_lacking = error.errno in NO_LOCKS
        if is_lacking and is_new:
            return file, False
        with file:
            if is_lacking:
                raise _refuse(
                    run,
                    f"{place} says that {_read(file)} is. This disk has no locks, so the file stays where a process is "
                    "killed: remove it if that one no longer runs.",
                ) from None
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise _refuse(run, f"there is one: {_read(file)}. Wait until it ends, or stop it.") from None
    return file, True


def _refuse(run: Path, found: str) -> RecipeError:
    return RecipeError(f"Expected no other process to be at work on {run}, but {found}")


def _read(file: FileIO) -> str:
    """Who holds the lock; where only they may read the file, or have not written it yet, nobody in particular."""
    with suppress(OSError):
        return file.read().decode(errors="replace") or "one of unknown number"
    return "one of unknown number"


def _write(file: FileIO, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text.encode())


def _let_go() -> None:
    """Takes the locks from a process that was forked: it may live longer than the one that holds them."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
