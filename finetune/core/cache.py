"""The folder that the runs of a machine share: what was made once is kept there until nobody asks for it any more."""

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

UNUSED = 30 * 24 * 3600
"""Seconds after which what nobody has asked for is removed."""


def cache_folder() -> Path:
    """`$ALIGN_FINETUNE_CACHE`, else `$XDG_CACHE_HOME/align-finetune`, else `~/.cache/align-finetune`."""
    if named := os.environ.get("ALIGN_FINETUNE_CACHE"):
        return Path(named).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "align-finetune"


def remove_unused(marks: Iterable[Path]) -> None:
    """Removes the folders that were not asked for in `UNUSED` seconds; who has their files open keeps them.

    Args:
        marks: A file of each folder, whose time is set whenever the folder is asked for.
    """
    for mark in _find_unused(marks):
        shutil.rmtree(mark.parent, ignore_errors=True)


def remove_unused_files(files: Iterable[Path]) -> None:
    """Removes the files that were not written anew in `UNUSED` seconds.

    Args:
        files: Files of the cache.

    Raises:
        OSError: If one is another user's.
    """
    for file in _find_unused(files):
        file.unlink(missing_ok=True)


def _find_unused(marks: Iterable[Path]) -> Iterator[Path]:
    for mark in marks:
        try:
            is_old = time.time() - mark.stat().st_mtime > UNUSED
        except OSError:  # another process was faster, or it is another user's
            continue
        if is_old:
            yield mark
