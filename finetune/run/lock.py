"""One process at a time works on a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from finetune.core.errors import RecipeError

LOCK = ".lock"
"""File in a run's folder that the process at work on it holds; the system lets go of it when the process ends."""


@contextmanager
def hold(run: Path) -> Iterator[None]:
    """Keeps other processes from working on a run.

    Args:
        run: The run's folder, which is made where there is none.

    Raises:
        RecipeError: If another process is at work on it.
    """
    lock = FileLock(run / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RecipeError(
            f"Expected no other process to be at work on {run}, but there is one. Wait until it ends, or stop it."
        ) from None
    try:
        yield
    finally:
        lock.release()
