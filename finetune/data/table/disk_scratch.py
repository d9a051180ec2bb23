"""Columns that grow in files while a large table is read, so that memory holds the part at hand."""

from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from finetune.data.table.cells import PART, Integers
from finetune.data.table.scratch import Growing, Scratch
from finetune.data.table.stored import StoredStrings, map_file


class GrowingFile(Growing):
    """A column in a file of its own, or of texts in two: their bytes, and where each ends.

    Args:
        path: The file of the numbers, or of the bytes.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("wb")
        self._type: np.dtype[Any] | np.dtypes.StringDType = np.dtype(np.int64)
        self._ends_path = path.with_suffix(".ends")
        self._ends: BinaryIO | None = None
        self._written = 0

    def append(self, part: npt.NDArray[Any]) -> None:
        """Adds rows; see `Growing.append`."""
        self._type = part.dtype
        if part.dtype != np.dtypes.StringDType():
            self._file.write(np.ascontiguousarray(part).data)
            return
        if self._ends is None:
            self._ends = self._ends_path.open("wb")
            self._ends.write(np.zeros(1, np.int64).data)
        texts = pa.array(part.tolist(), pa.large_string())
        _, starts, content = texts.buffers()
        ends = np.frombuffer(starts, np.int64)[1 : len(texts) + 1]
        self._ends.write((ends + self._written).data)
        if len(ends):
            self._written += self._file.write(content.slice(0, int(ends[-1])))

    def finish(self) -> Any:
        """Maps the whole column."""
        self._file.close()
        content = map_file(str(self._path))
        if self._ends is None:
            return np.frombuffer(content, self._type)
        self._ends.close()
        return StoredStrings(np.frombuffer(map_file(str(self._ends_path)), np.int64), np.frombuffer(content, np.uint8))


class DiskScratch(Scratch):
    """Columns in files of a folder.

    Args:
        folder: The folder, which exists.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, count()

    def column(self) -> GrowingFile:
        """Begins a column."""
        return GrowingFile(self._folder / f"{next(self._count)}.column")

    def keep(self, values: Any) -> Any:
        """Puts an array of numbers into a file."""
        column = self.column()
        column.append(values)
        return column.finish()

    def take(self, values: Any, at: Integers) -> Any:
        """Takes values; see `Scratch.take`."""
        if isinstance(values, StoredStrings) and np.array_equal(at, np.arange(len(values))):
            return values
        column = self.column()
        for start in range(0, max(1, len(at)), PART):
            column.append(values[at[start : start + PART]])
        return column.finish()
