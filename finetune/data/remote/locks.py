"""Files that the processes of a machine read, write and remove at once, under locks of the system.

The system lets go of a lock when its process ends.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from finetune.core.places import is_at

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HAS_LOCKS = fcntl is not None
"""Whether the system has such locks."""


def open_shared(path: Path, size: int | None) -> BinaryIO | None:
    """Opens a file that nobody may remove until `close`.

    Args:
        path: The file.
        size: Number of its bytes; None where that is not known.

    Returns:
        The file; None where it is not there, or not as long as it should be.
    """
    try:
        source = path.open("rb")
    except FileNotFoundError:
        return None
    share(source)
    if is_at(source, path):  # not removed before it was locked
        if size is None or os.fstat(source.fileno()).st_size == size:
            return source
        path.unlink(missing_ok=True)
    leave(source)
    return None


def close(source: BinaryIO) -> None:
    """Lets go of a file that was in use until now, and notes the time.

    Args:
        source: The file.
    """
    now = time.time_ns()  # the system's own clock for files stands still for milliseconds
    os.utime(source.fileno(), ns=(now, now))
    leave(source)


def leave(file: BinaryIO) -> None:
    """Lets go of a file, and of the lock on it.

    Args:
        file: The file.
    """
    _unlock(file)
    file.close()


def open_to_write(path: Path) -> BinaryIO:
    """Opens a file, made where it is not there, and leaves what it holds.

    Args:
        path: The file.
    """
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")


@contextmanager
def lock(file: BinaryIO) -> Iterator[None]:
    """Holds a file for oneself as long as the block runs; others wait.

    Args:
        file: The file, open for writing.
    """
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        _unlock(file)


def lock_or_wait(file: BinaryIO) -> bool:
    """Holds a file for oneself, or shares it, once another no longer holds it, with those who read it by then.

    Args:
        file: The file, open for writing.

    Returns:
        Whether it is held for oneself.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        share(file)
        return False
    return True


def share(file: BinaryIO) -> None:
    """Lets others read a file that was held for oneself, which nobody may remove until `close`.

    Args:
        file: The file.
    """
    fcntl.flock(file, fcntl.LOCK_SH)


def remove_unused(path: Path) -> bool:
    """Removes a file, unless somebody reads or holds it.

    Args:
        path: The file.

    Returns:
        Whether it was removed.
    """
    try:
        with path.open("r+b") as file:  # on NFS, what is locked for oneself has to be open for writing
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_there = is_at(file, path)
            if is_there:
                path.unlink()
            _unlock(file)
            return is_there
    except OSError:  # in use, or removed by another process
        return False


def _unlock(file: BinaryIO) -> None:
    """Lets go of a lock, which closing alone would not: a process that was forked meanwhile has the file open too."""
    fcntl.flock(file, fcntl.LOCK_UN)
