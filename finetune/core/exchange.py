"""Puts a finished folder in the place of another, so that one of the two is found there, whole."""

import ctypes
import errno
import glob
import os
import shutil
from pathlib import Path

_CURRENT_FOLDER, _RENAME_EXCHANGE = -100, 2  # of Linux' fcntl.h and stdio.h
_FIXED = (errno.EBUSY, errno.EXDEV)  # a mount, or a folder of a lower layer of a container's image
_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, *_FIXED}

_renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def replace_folder(new: Path, target: Path) -> None:
    """Puts `new` in the place of what stands at `target`, which lies beside `new`'s former place then.

    Linux exchanges the two in one step, so that `target` is never absent. Where the system or the disk cannot (other
    systems, NFS, most other network shares), what stands there is moved away first. A process that is killed between
    these two renames leaves `target` absent, and what stood there in the folder of `new`, from where `restore_folder`
    puts it back the next time that the place is read or written.

    Args:
        new: The finished folder, in a folder of its own beside `target`.
        target: What is replaced: a folder, a file or a link, which itself is replaced, not what it names.

    Raises:
        FileExistsError: If `target` cannot be moved at all.
        OSError: If neither way works. `target` is as it was, unless `new`'s folder holds it.
    """
    if _exchange(new, target):
        return
    try:
        target.rename(_former(new.parent))
    except OSError as error:
        if error.errno not in _FIXED:
            raise
        raise FileExistsError(
            f"Expected {target} to be a folder that another can replace, but it is a mount or part of a container's "
            "image. Remove it first, or name another folder."
        ) from error
    new.rename(target)


def clear_staging(staging: Path) -> None:
    """Removes what a write left beside its target, once the target is there.

    Args:
        staging: What was written first: a file, or the folder around a folder. Its name is the target's between a dot,
            and a dot and eight characters.
    """
    former = _former(staging)
    try:
        if is_present(former) and not is_present(_target(staging)):
            former.rename(_target(staging))
        if not staging.is_dir() or staging.is_symlink():
            staging.unlink(missing_ok=True)
    except OSError:  # the former content may be nowhere else
        return
    shutil.rmtree(staging, ignore_errors=True)


def restore_folder(target: Path) -> None:
    """Puts back what a process had moved away when it was killed, see `replace_folder`.

    Args:
        target: What is about to be read or written; nothing is done where something stands there.
    """
    name = glob.escape(target.name)
    if not is_present(target):
        for former in target.parent.glob(f".{name}.????????/{_former_name(name)}"):
            clear_staging(former.parent)


def is_present(path: Path) -> bool:
    """Whether a file, a folder or a link, be it broken, stands at a path.

    Args:
        path: Any path.
    """
    return os.path.lexists(path)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names of one disk in one step; false where that is not supported."""
    if _renameat2 is None:
        return False
    places = (_CURRENT_FOLDER, os.fsencode(one), _CURRENT_FOLDER, os.fsencode(other))
    if _renameat2(*places, _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _target(staging: Path) -> Path:
    return staging.with_name(staging.name[1 : -len(".a1b2c3d4")])


def _former(staging: Path) -> Path:
    """Where what stood at the target waits until the new folder is there."""
    return staging / _former_name(_target(staging).name)


def _former_name(name: str) -> str:
    return f"{name}.former"
