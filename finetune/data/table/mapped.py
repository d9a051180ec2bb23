"""Columns that stay in an Arrow file: read where they lie, and opened by other processes by the file's path."""

# Plain functions, as Rows hold columns in the hot path of each worker.
# ruff: noqa: PTH116, PTH123

import mmap
import os
from collections.abc import Mapping
from functools import lru_cache
from itertools import count
from operator import index
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from finetune.core.files import write_file
from finetune.data.table.cells import Strings, as_strings

CHUNK = 100_000
"""Texts that are held as Python objects at a time."""

BETWEEN = 8
"""Rows read at random between two releases: the system maps up to 2 MiB around each value that is asked for."""

_calls = count(1)
_opened: "WeakSet[MappedFile]" = WeakSet()


class MappedFile:
    """An Arrow file with one batch of rows, mapped into memory: the system reads the pages that are asked for.

    Args:
        path: The file.

    Raises:
        OSError: If it cannot be opened.
        pa.ArrowInvalid: If it is no Arrow file.
    """

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        batches = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._map)))
        self._batch = batches.get_batch(0)
        self.metadata: dict[bytes, bytes] = batches.schema.metadata or {}
        _opened.add(self)

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """Returns a column of numbers without copying it; of lists, their `NAME/values` or their `NAME/offsets`."""
        name, _, part = name.partition("/")
        column = self._batch.column(name)
        column = getattr(column, part) if part else column
        return np.frombuffer(column.buffers()[1], column.type.to_pandas_dtype(), len(column))

    def texts(self, name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """Returns where each text of a column begins, and the end; and the bytes of all of them."""
        column = self._batch.column(name)
        starts, content = column.buffers()[1:]
        return np.frombuffer(starts, np.int64, len(column) + 1), np.frombuffer(content or b"", np.uint8)

    def is_text(self, name: str) -> bool:
        """Whether a column holds texts."""
        return bool(pa.types.is_large_string(self._batch.schema.field(name).type))

    def release(self) -> None:
        """Gives back the pages that were read; asked for again, they mostly are in the system's memory still."""
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)


def open_mapped(path: str) -> MappedFile:
    """Opens a file, once in each process as long as it is the same file.

    Args:
        path: The file.

    Raises:
        OSError: If it cannot be opened.
    """
    found = os.stat(path)
    return _open(path, found.st_ino, found.st_mtime_ns)


@lru_cache(maxsize=16)
def _open(path: str, *_: int) -> MappedFile:
    return MappedFile(path)


def release_pages() -> None:
    """Gives back the pages of all mapped files: else a process seems to hold all that it has ever read."""
    for file in tuple(_opened):
        file.release()


def release_sometimes() -> None:
    """Does so once in `BETWEEN` calls: one for each row that is read at random."""
    if next(_calls) % BETWEEN == 0:
        release_pages()


class MappedArray(npt.NDArray[Any]):
    """A column of numbers in a file, or a part of it, pickled as its place; what is computed of it is an array."""

    _place: tuple[str, str, int, int] | None

    def __array_finalize__(self, _: object) -> None:
        self._place = None

    def __array_wrap__(self, array: Any, _: Any = None, is_scalar: bool = False) -> Any:
        """Returns a plain array of what was computed."""
        return array[()] if is_scalar else np.asarray(array)

    def __getitem__(self, rows: Any) -> Any:
        """Returns a plain array of some rows, or the value of one."""
        return self.view(np.ndarray)[rows]

    def __reduce__(self) -> Any:
        """Returns how another process opens the column; what was computed of it is pickled as any array."""
        return super().__reduce__() if self._place is None else (map_numbers, self._place)


def map_numbers(path: str, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
    """Opens a column of numbers.

    Args:
        path: The file.
        name: The column.
        start: Its first row.
        stop: The row after its last; None for the end.
    """
    column = open_mapped(path).numbers(name)
    stop = len(column) if stop is None else stop
    found = column[start:stop].view(MappedArray)
    found._place = (path, name, start, stop)
    return found


class MappedStrings:
    """A column of texts in a file, each of them decoded when it is asked for; pickled as the place in the file.

    Args:
        path: The file.
        name: The column.
    """

    def __init__(self, path: str, name: str) -> None:
        self._place = path, name
        self._starts, self._content = open_mapped(path).texts(name)

    def __reduce__(self) -> Any:
        return MappedStrings, self._place

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
        if isinstance(rows, slice):
            at = np.arange(*rows.indices(len(self)))
        else:
            at = np.asarray(rows)
            at = np.flatnonzero(at) if at.dtype == bool else at
        parts = (at[start : start + CHUNK].tolist() for start in range(0, len(at), CHUNK))
        return np.concatenate([as_strings([]), *(as_strings([*map(self._read, part)]) for part in parts)])

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


def write_columns(path: Path, columns: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes columns of equal length as an Arrow file that can be mapped: one batch, not compressed.

    Args:
        path: The file.
        columns: Arrays of numbers or texts, or Arrow's of lists.
        metadata: What else the file says of them.

    Raises:
        OSError: If it cannot be written.
    """
    batch = pa.record_batch({name: _as_arrow(column) for name, column in columns.items()})
    schema = batch.schema.with_metadata(dict(metadata))
    with write_file(path) as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(batch.replace_schema_metadata(schema.metadata))
    del batch
    pa.default_memory_pool().release_unused()


def _as_arrow(column: Any) -> pa.Array:
    if isinstance(column, pa.Array):
        return column
    if column.dtype != np.dtypes.StringDType():
        return pa.array(column)
    parts = [
        pa.array(column[start : start + CHUNK].tolist(), pa.large_string()) for start in range(0, len(column), CHUNK)
    ]
    return pa.concat_arrays(parts) if parts else pa.array([], pa.large_string())
