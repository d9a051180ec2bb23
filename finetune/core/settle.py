"""What was written gets its mode and reaches the disk, as far as the disk knows of such things."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.core.places import name_place

_LACKING = {errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
"""What network shares say where they know no modes, or cannot sync a folder."""


def settle(folder: Path) -> None:
    """Gives everything in a folder its mode, and waits until it is on the disk. Links are left as they are.

    Args:
        folder: The folder.

    Raises:
        OSError: If a folder cannot be listed, or a file cannot be brought to the disk.
    """
    for place, _, names in os.walk(folder, topdown=False, onerror=_raise):
        for path in [path for name in names if not (path := Path(place, name)).is_symlink()]:
            apply_umask(path)
            _sync(path)
        apply_umask(Path(place))
        sync_folder(Path(place))


def apply_umask(path: Path) -> None:
    """Gives a file or folder the mode that open() or mkdir() would have given it, where the disk knows modes.

    Args:
        path: The file or folder.
    """
    mask = os.umask(0)
    os.umask(mask)
    with _where_supported():
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, where the disk can tell.

    Args:
        folder: The folder.

    Raises:
        OSError: If the disk fails.
    """
    with name_place(folder), _where_supported():
        _sync(folder)


def _raise(error: OSError) -> None:
    raise error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _where_supported() -> Iterator[None]:
    """Does without what a share lacks."""
    try:
        yield
    except OSError as error:
        if error.errno not in _LACKING:
            raise
