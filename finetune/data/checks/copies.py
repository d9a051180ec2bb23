"""Finds the same picture in two splits or of two classes: by its path or id, and by the bytes of its file."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from finetune.core.errors import Concern
from finetune.data.checks.concerns import count, places_where, show_some
from finetune.data.checks.many_texts import DistinctTexts, digest, find_leaders, in_parts
from finetune.data.prepare.members import place_of, read_bytes, size_of
from finetune.data.remote.places import is_remote
from finetune.data.table.cells import Integers, Mask, number_strings
from finetune.data.table.rows import Rows

BEGINNING = 1 << 14  # bytes that distinguish most files of equal size
REMOTE = -2  # the size of a file that is not looked at: to read it is to fetch its shard


class Trait(NamedTuple):
    """What all rows of a picture should have in common.

    Attributes:
        values: Integer array of shape (N,): the value of each row.
        abouts: The subjects of the concerns about one picture, and about equal files.
        relation: The word between a picture and its values, such as `of`.
        several: What it has, such as `more than one class`.
        advice: What to do about it; the end of the message.
    """

    values: npt.NDArray[np.integer]
    abouts: tuple[str, str]
    relation: str
    several: str
    advice: str = "."


def find_copies(rows: Rows) -> list[Concern]:
    """Finds pictures that several splits hold, and contradictions. Only files of equal size are read, no remote ones.

    Args:
        rows: The table.
    """
    return _find_shared(
        rows,
        [
            Trait(rows.splits, ("image_in_several_splits", "copy_in_several_splits"), "in", "more than one split"),
            *_class_of(rows),
        ],
    )


def find_contradictions(rows: Rows) -> list[Concern]:
    """Finds pictures that have several classes, in tables where a row has one. Only files of equal size are read.

    Args:
        rows: The table.
    """
    return _find_shared(rows, _class_of(rows))


def _class_of(rows: Rows) -> list[Trait]:
    if not rows.classes or rows.label_sets is not None:
        return []
    advice = ". Keep the label that is right, or read several labels an image (data.table.label_separator)."
    return [
        Trait(
            rows.label_ids, ("image_of_several_classes", "copy_of_several_classes"), "of", "more than one class", advice
        )
    ]


def _find_shared(rows: Rows, traits: Sequence[Trait]) -> list[Concern]:
    if not traits:
        return []
    first, files = number_strings(rows.images)
    contents = _group_by_content(rows, first, files, [trait.values for trait in traits])
    found = []
    for trait in traits:
        shared = _with_several(rows.image_ids, trait.values)
        copied = _with_several(contents[files], trait.values)
        copied = copied[np.bincount(contents)[copied] > 1]
        if len(shared):
            about = _describe(
                f"{trait.relation} {trait.several}", trait.advice, rows, np.isin(rows.image_ids, shared), len(shared)
            )
            found.append(Concern(trait.abouts[0], *about))
        if len(copied):
            about = _describe(
                f"in files of {trait.several}, byte for byte",
                trait.advice,
                rows,
                np.isin(contents[files], copied),
                len(copied),
            )
            found.append(Concern(trait.abouts[1], *about))
    return found


def _describe(where: str, advice: str, rows: Rows, chosen: Mask, images: int) -> tuple[str, tuple[str, ...]]:
    """Writes the message on the chosen rows, and returns it with their places."""
    parts = in_parts(rows.images, np.flatnonzero(chosen))
    names = DistinctTexts([Path(place_of(path)).name for path in part] for part in parts)
    shown = show_some(names.shown, names.count)
    message = f"{count(images, 'image is', 'images are')} {where}: {shown}{advice}"
    return message, places_where(rows, chosen)


def _with_several(ids: Integers, values: npt.NDArray[np.integer]) -> Integers:
    """Returns the ids that rows of more than one value have."""
    span = int(values.max(initial=0)) + 2  # -1 stands for none
    pairs = np.unique(ids * span + values + 1) // span
    return np.unique(pairs[1:][pairs[1:] == pairs[:-1]])


def _group_by_content(
    rows: Rows, first: Integers, files: Integers, values: Sequence[npt.NDArray[np.integer]]
) -> Integers:
    """Numbers the files, equal for equal bytes; this is exact where equal files have several of some values."""
    paths = (path for part in in_parts(rows.images, first) for path in part)
    sizes = np.fromiter((REMOTE if is_remote(path) else _size(path) for path in paths), np.int64)
    contents = np.arange(len(first))
    doubtful = np.isin(sizes, np.concatenate([_with_several(sizes[files], each) for each in values]))
    doubtful &= sizes != REMOTE
    for limit in (BEGINNING, None):
        at = np.flatnonzero(doubtful)
        paths = (path for part in in_parts(rows.images, first[at]) for path in part)
        keys = digest(_key(path, size, limit) for path, size in zip(paths, sizes[at].tolist(), strict=True))
        leaders = find_leaders(keys)
        contents[at] = at[leaders]
        doubtful[at] = (np.bincount(leaders)[leaders] > 1) & (sizes[at] > BEGINNING)
    return contents


def _size(path: str) -> int:
    try:
        return size_of(path)
    except OSError:
        return -1


def _key(path: str, size: int, limit: int | None) -> bytes:
    """What is equal for files of equal size whose bytes, or first bytes, are equal."""
    try:
        return size.to_bytes(8, signed=True) + read_bytes(path, limit)
    except OSError:
        return path.encode()  # equal to no other file; opening the image reports the error
