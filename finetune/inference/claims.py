"""Claims on parts of a work that several processes share: who holds one does it, and who dies lets go of it.

A claim saves work and decides on nothing: what two processes did at once would be the same, and each writes it whole.
"""

import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from finetune.core.places import is_at, name_place
from finetune.run.lock import NO_LOCKS

EXPIRES = 600.0
"""Seconds after which a claim counts no more that nobody has renewed, where a disk has no locks."""
_HELD = (errno.EACCES, errno.EAGAIN)


class Claim:
    """A claim that is held.

    Args:
        place: Its file.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._renewed = time.monotonic()

    def renew(self) -> None:
        """Says that the holder is still at work; to be called more often than every `EXPIRES` seconds."""
        if time.monotonic() - self._renewed > EXPIRES / 20:
            self._renewed = time.monotonic()
            with suppress(OSError):  # a disk that is away for a moment
                os.utime(self._place)


@contextmanager
def claim(place: Path) -> Iterator[Claim | None]:
    """Claims a part of a work for the length of the block; None where another process holds it.

    The claim is a lock of the system (`flock`, which NFS and SMB pass on to their server) on a file that is removed
    at the end, so it ends with its process, however that ends. Where a disk has no locks the file itself is the claim,
    and expires unless it is renewed.

    Args:
        place: The file; its folder must exist.

    Raises:
        OSError: If nothing can be written there.
    """
    with name_place(place):
        file = _take(place)
    if file is None:
        yield None
        return
    with file:
        try:
            yield Claim(place)
        finally:
            with suppress(OSError):
                place.unlink()  # while it is held, so that it is nobody else's


def _take(place: Path) -> FileIO | None:
    try:
        file, is_new = FileIO(place, "x+"), True
    except FileExistsError:
        try:
            file, is_new = FileIO(place, "r+"), False
        except FileNotFoundError:  # its holder has ended this moment
            return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = is_at(file, place)  # else its former holder has removed it
    except OSError as error:
        if error.errno not in (*NO_LOCKS, *_HELD):
            file.close()
            raise
        is_ours = error.errno in NO_LOCKS and (is_new or _is_expired(place))
    if is_ours:
        os.utime(place)
        return file
    file.close()
    return None


def _is_expired(place: Path) -> bool:
    """Whether nobody has renewed a claim, by the clock of the machine that keeps the disk."""
    with tempfile.TemporaryFile(dir=place.parent, prefix=f"{place.name}.") as now:
        renewed = place.stat().st_mtime if place.exists() else 0.0
        return os.fstat(now.fileno()).st_mtime - renewed > EXPIRES
