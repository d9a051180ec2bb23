"""Columns that stay in an Arrow file: read where they lie, and opened by other processes by the file's path."""

# Plain functions, as Rows hold columns in the hot path of each worker.
# ruff: noqa: PTH116

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from finetune.core.files import write_file
from finetune.data.table.stored import StoredStrings, map_file


class MappedFile:
    """An Arrow file with one batch of rows, mapped into memory: the system reads the pages that are asked for.

    Args:
        path: The file.

    Raises:
        OSError: If it cannot be opened.
        pa.ArrowInvalid: If it is no Arrow file.
    """

    def __init__(self, path: str) -> None:
        batches = pa.ipc.open_file(pa.BufferReader(map_file(path)))
        self._batch = batches.get_batch(0)
        self.metadata: dict[bytes, bytes] = batches.schema.metadata or {}

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


class MappedStrings(StoredStrings):
    """A column of texts in an Arrow file, pickled as the place in the file.

    Args:
        path: The file.
        name: The column.
    """

    def __init__(self, path: str, name: str) -> None:
        super().__init__(*open_mapped(path).texts(name))
        self._place = path, name

    def __reduce__(self) -> Any:
        return MappedStrings, self._place


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
    if isinstance(column, StoredStrings):
        return column.arrow
    return pa.array(column.tolist(), pa.large_string()) if column.dtype == np.dtypes.StringDType() else pa.array(column)
