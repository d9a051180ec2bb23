"""Finds the same picture in two splits: by its path or id, and by the bytes of its file."""

from collections import defaultdict
from hashlib import blake2b
from pathlib import Path

import numpy as np

from finetune.core.errors import Concern
from finetune.data.checks.concerns import count, places_where, show_some
from finetune.data.prepare.members import place_of, read_bytes, size_of
from finetune.data.table.cells import Integers
from finetune.data.table.rows import Rows
from finetune.data.table.splits import SPLITS

BEGINNING = 1 << 14  # bytes that distinguish most files of equal size


def find_copies(rows: Rows) -> list[Concern]:
    """Finds pictures that several splits hold. Only files of equal size are read.

    Args:
        rows: The table.
    """
    paths, files = np.unique(rows.images, return_inverse=True)
    contents = _group_by_content(paths.tolist(), files, rows)
    shared = _in_several_splits(rows.image_ids, rows)
    copied = _in_several_splits(contents[files], rows)
    copied = copied[np.bincount(contents)[copied] > 1]
    found = []
    if len(shared):
        about = _describe("in more than one split", rows, rows.image_ids, shared)
        found.append(Concern("image_in_several_splits", *about))
    if len(copied):
        about = _describe("in files of more than one split, byte for byte", rows, contents[files], copied)
        found.append(Concern("copy_in_several_splits", *about))
    return found


def _describe(where: str, rows: Rows, ids: Integers, shared: Integers) -> tuple[str, tuple[str, ...]]:
    """Writes the message on the rows whose id is shared, and returns it with their places."""
    chosen = np.isin(ids, shared)
    names = dict.fromkeys(Path(place_of(path)).name for path in rows.images[chosen].tolist())
    message = f"{count(len(shared), 'image is', 'images are')} {where}: {show_some(names)}."
    return message, places_where(rows, chosen)


def _in_several_splits(ids: Integers, rows: Rows) -> Integers:
    """Returns the ids that rows of more than one split have."""
    pairs = np.unique(ids * len(SPLITS) + rows.splits) // len(SPLITS)
    return np.unique(pairs[1:][pairs[1:] == pairs[:-1]])


def _group_by_content(paths: list[str], files: Integers, rows: Rows) -> Integers:
    """Numbers the files, equal for equal bytes; this is exact where equal files are in several splits."""
    sizes = np.array([_size(path) for path in paths], dtype=np.int64)
    contents = np.arange(len(paths))
    doubtful = np.isin(sizes, _in_several_splits(sizes[files], rows))
    for limit in (BEGINNING, None):
        groups: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        contents[doubtful] = np.flatnonzero(doubtful)
        for at in np.flatnonzero(doubtful).tolist():
            groups[int(sizes[at]), _digest(paths[at], limit)].append(at)
        doubtful = np.zeros(len(paths), dtype=bool)
        for members in (members for members in groups.values() if len(members) > 1):
            doubtful[members] = sizes[members[0]] > BEGINNING
            contents[members] = members[0]
    return contents


def _size(path: str) -> int:
    try:
        return size_of(path)
    except OSError:
        return -1


def _digest(path: str, limit: int | None) -> bytes:
    try:
        return blake2b(read_bytes(path, limit), digest_size=16).digest()
    except OSError:
        return path.encode()  # equal to no other file; opening the image reports the error
