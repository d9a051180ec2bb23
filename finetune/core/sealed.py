"""Fingerprints of large files, taken once; and seals, by which a kept file is known to be as it was written."""

import os
import time
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from finetune.core.cache import cache_folder, remove_unused_files
from finetune.core.files import fingerprint_file, read_json, write_json, write_text

SMALL = 1 << 20
"""Bytes up to which a file is read each time."""

SETTLED = 2.0
"""Seconds after which a file that changes again has another time of change, on the coarsest disks."""

_SEAL = ".sha256"


def state_of(path: str | Path) -> list[int]:
    """Returns size, time of change in nanoseconds, and inode of a file or folder.

    Args:
        path: The file or folder.

    Raises:
        OSError: If there is none.
    """
    found = os.stat(path)  # noqa: PTH116 (of a path or a string)
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def fingerprint_once(path: Path) -> str:
    """Returns what `fingerprint_file` does, but reads a large file once: until its size, time or inode change.

    The fingerprint is noted in the cache folder; where nothing can be written there, the file is read each time.

    Args:
        path: The file.

    Raises:
        OSError: If it cannot be read.
    """
    state = state_of(path)
    if state[0] <= SMALL:
        return fingerprint_file(path)
    note = _note(path)
    try:
        known = read_json(note)
        if known["state"] == state:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = fingerprint_file(path)
    if time.time() - state[1] / 1e9 > SETTLED and state_of(path) == state:
        _remember(note, state, found)
    return found


def seal(path: Path) -> None:
    """Writes the fingerprint of a file that was just written beside it.

    Args:
        path: The file, which must not change any more.

    Raises:
        OSError: If the fingerprint cannot be written.
    """
    found = fingerprint_file(path)
    write_text(_seal_of(path), found)
    _remember(_note(path), state_of(path), found)


def is_sealed(path: Path) -> bool:
    """Whether a file is there and as it was when it was sealed.

    Args:
        path: The file.
    """
    try:
        return _seal_of(path).read_text() == fingerprint_once(path)
    except (OSError, ValueError):
        return False


def break_seal(path: Path) -> None:
    """Lets a file count as absent, before it is written anew.

    Args:
        path: The file, or where it would be.
    """
    _seal_of(path).unlink(missing_ok=True)


def _seal_of(path: Path) -> Path:
    return path.with_name(path.name + _SEAL)


def _note(path: Path) -> Path:
    place = str(path.absolute()).encode(errors="surrogateescape")
    return cache_folder() / "fingerprints" / f"{blake2b(place, digest_size=16).hexdigest()}.json"


def _remember(note: Path, state: list[int], found: str) -> None:
    with suppress(OSError):
        write_json(note, {"state": state, "sha256": found})
        remove_unused_files(note.parent.glob("*.json"))  # each costs one reading of its file
