"""Many texts, of which memory holds some at a time: in their place stand hashes of 16 bytes."""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from finetune.data.table.cells import PART, Integers

SHOWN = 3

Digests: TypeAlias = npt.NDArray[np.bytes_]


def in_parts(column: Any, rows: Integers) -> Iterator[list[str]]:
    """Yields the texts of rows, some at a time.

    Args:
        column: A column of texts.
        rows: Positions in it.
    """
    for start in range(0, len(rows), PART):
        yield column[rows[start : start + PART]].tolist()


def digest(contents: Iterable[bytes]) -> Digests:
    """Hashes contents with BLAKE2b; that two of a billion have equal hashes has a probability of 1e-21.

    Args:
        contents: N of them.

    Returns:
        Array of N values of 16 bytes.
    """
    return np.fromiter((blake2b(content, digest_size=16).digest() for content in contents), "S16")


def find_leaders(values: Digests) -> Integers:
    """Returns for each value the position of the first that is equal to it.

    Args:
        values: Array of N values.

    Example:
        >>> find_leaders(digest([b"a", b"b", b"a"]))
        array([0, 1, 0])
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    is_first = np.append(True, ordered[1:] != ordered[:-1])[: len(order)]
    del ordered
    found = np.empty(len(order), dtype=np.int64)
    found[order] = np.repeat(order[is_first], np.diff(np.flatnonzero(is_first), append=len(order)))
    return found


class DistinctTexts:
    """Counts different texts, and remembers few of them.

    Args:
        parts: The texts.
        in_order: Whether the first few in their own order are remembered, or the first that come.

    Attributes:
        count: How many there are.
        shown: The first `SHOWN`.
    """

    def __init__(self, parts: Iterable[Sequence[str]], in_order: bool = False) -> None:
        found = [np.empty(0, "S16")]
        self.shown: list[str] = []
        for part in parts:
            texts = [*dict.fromkeys([*self.shown, *part])]
            self.shown = (sorted(texts) if in_order else texts)[:SHOWN]
            found.append(np.unique(digest(text.encode() for text in part)))
        self.count = len(np.unique(np.concatenate(found)))
