"""The same picture in two splits: by its path or id, and by the bytes of its file."""

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

BEGINNING = 1 << 14  # bytes that tell most files of equal size apart


def find_copies(rows: Rows) -> list[Concern]:
    """Finds pictures of which one split holds what another does. Only files of equal size are read.

    Args:
        rows: The table.
    """
    found = []
    shared = _in_several_splits(rows.image_ids, rows)
    if len(shared):
        chosen = np.isin(rows.image_ids, shared)
        names = dict.fromkeys(Path(place_of(path)).name for path in rows.images[chosen].tolist())
        message = f"{count(len(shared), 'image stands', 'images stand')} in more than one split: {show_some(names)}."
        found.append(Concern("image_in_several_splits", message, places_where(rows, chosen)))
    paths, ids = np.unique(rows.images, return_inverse=True)
    contents = _group_by_content(paths.tolist(), ids, rows)
    copied = _in_several_splits(contents[ids], rows)
    copied = np.array([content for content in copied if len(set(ids[contents[ids] == content])) > 1])
    if len(copied):
        chosen = np.isin(contents[ids], copied)
        names = dict.fromkeys(Path(place_of(path)).name for path in rows.images[chosen].tolist())
        pictures = count(len(copied), "picture lies", "pictures lie")
        message = f"{pictures} in files of more than one split, byte for byte: {show_some(names)}."
        found.append(Concern("copy_in_several_splits", message, places_where(rows, chosen)))
    return found


def _in_several_splits(ids: Integers, rows: Rows) -> Integers:
    """The ids that rows of more than one split have."""
    pairs = np.unique(ids * len(SPLITS) + rows.splits) // len(SPLITS)
    return np.unique(pairs[1:][pairs[1:] == pairs[:-1]])


def _group_by_content(paths: list[str], ids: Integers, rows: Rows) -> Integers:
    """A number for each file, equal for equal bytes; exact where equal files stand in several splits."""
    sizes = np.array([_size(path) for path in paths], dtype=np.int64)
    contents = np.arange(len(paths))
    doubtful = np.isin(sizes, _in_several_splits(sizes[ids], rows))
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
        return path.encode()  # equal to no other; opening the image will tell
