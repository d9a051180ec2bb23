"""Columns that lie in files and are read from there: the system reads the pages that are asked for."""

# Plain functions, as Rows hold columns in the hot path of each worker.
# ruff: noqa: PTH123

import mmap
import os
from collections.abc import Iterator
from itertools import count
from operator import index
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from finetune.data.table.cells import PART, Integers, Strings, as_strings, find_first_rows

BETWEEN = 8
"""Rows read at random between two releases: the system maps up to 2 MiB around each value that is asked for."""

_calls = count(1)
_opened: "WeakSet[mmap.mmap]" = WeakSet()


def map_file(path: str) -> pa.Buffer:
    """Maps a file into memory.

    Args:
        path: The file.

    Raises:
        OSError: If it cannot be opened.
    """
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return pa.py_buffer(b"")
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _opened.add(pages)
    return pa.py_buffer(pages)


def release_pages() -> None:
    """Gives back the pages of all mapped files: else a process seems to hold all that it has ever read.

    Asked for again, they mostly are in the system's memory still.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        for pages in tuple(_opened):
            pages.madvise(mmap.MADV_DONTNEED)


def release_sometimes() -> None:
    """Does so once in `BETWEEN` calls: one for each row that is read at random."""
    if next(_calls) % BETWEEN == 0:
        release_pages()


class StoredStrings:
    """A column of texts in a file, each of them decoded when it is asked for.

    Args:
        starts: Int64 array of shape (N + 1,): where each text begins in `content`, and the end.
        content: The UTF-8 bytes of all texts.
    """

    def __init__(self, starts: Integers, content: npt.NDArray[np.uint8]) -> None:
        self._starts, self._content = starts, content
        buffers = [None, pa.py_buffer(starts), pa.py_buffer(content)]
        self.arrow = pa.Array.from_buffers(pa.large_string(), len(starts) - 1, buffers)

    def __reduce__(self) -> Any:
        """Returns what another process receives: an array, as the files may be gone."""
        return as_strings, (self.tolist(),)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def dtype(self) -> np.dtypes.StringDType:
        """The type of the arrays that the texts are read into."""
        return np.dtypes.StringDType()

    def __getitem__(self, rows: Any) -> Any:
        """Returns one text, or a string array of those that a slice, positions or a mask choose."""
        if not isinstance(rows, slice | list | np.ndarray):
            return self._read(index(rows))
        return np.concatenate([as_strings([]), *map(as_strings, self._read_parts(rows))])

    def _read_parts(self, rows: "slice | list[int] | npt.NDArray[Any]") -> Iterator[list[str]]:
        if isinstance(rows, slice):
            at: Any = range(*rows.indices(len(self)))
        else:
            at = np.asarray(rows)
            at = np.flatnonzero(at) if at.dtype == bool else np.where(at < 0, at + len(self), at)
        for start in range(0, len(at), PART):
            part = at[start : start + PART]
            if isinstance(part, range) and part.step == 1:
                yield self.arrow.slice(part.start, len(part)).to_pylist()
            else:
                yield self.arrow.take(pa.array(part, pa.int64())).to_pylist()
            release_pages()

    def _read(self, row: int) -> str:
        row = range(len(self))[row]  # counts from the end where it is negative
        return self._content[self._starts[row] : self._starts[row + 1]].tobytes().decode()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Strings:
        """Reads all texts into an array."""
        found: Strings = self[:]
        return found if dtype is None else found.astype(dtype)

    def tolist(self) -> list[str]:
        """Reads all texts."""
        found: list[str] = self[:].tolist()
        return found

    def number(self) -> tuple[Integers, Integers]:
        """Numbers the texts, see `number_strings`, in 32 bytes a text."""
        ranks = pc.rank(self.arrow, tiebreaker="dense").to_numpy().view(np.int64) - 1
        release_pages()
        return find_first_rows(ranks), ranks
