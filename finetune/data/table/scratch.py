"""Columns that grow while a table is read, part by part; here in memory."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.data.table.cells import Cells, Integers, Mask, Strings


class Growing:
    """A column in memory."""

    def __init__(self) -> None:
        self._parts: list[npt.NDArray[Any]] = []

    def append(self, part: npt.NDArray[Any]) -> None:
        """Adds rows.

        Args:
            part: Numbers, or a string array; of the type of the parts before.
        """
        self._parts.append(part)

    def finish(self) -> Any:
        """Returns the whole column, of at least one part."""
        return np.concatenate(self._parts)


class Scratch:
    """Where columns lie while a table is read: in memory. `DiskScratch` holds those of large tables."""

    def column(self) -> Growing:
        """Begins a column."""
        return Growing()

    def keep(self, values: npt.NDArray[Any]) -> Any:
        """Puts an array of numbers where the columns are.

        Args:
            values: The array.
        """
        return values

    def take(self, values: Any, at: Integers) -> Any:
        """Returns the values at some positions, where the columns are.

        Args:
            values: A finished column, or an array.
            at: The positions.
        """
        return values[at]


MEMORY = Scratch()


class GrowingCells:
    """Cells that grow by parts.

    Args:
        scratch: Where their columns lie.
    """

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._files: tuple[str, ...] = ()
        self._numbers, self._file_ids = scratch.column(), scratch.column()
        self._columns: dict[str, Growing] = {}
        self._nested = frozenset[str]()

    def append(self, parts: Iterable[Cells]) -> None:
        """Adds rows of other files.

        Args:
            parts: Rows of the same files and columns, at least one part.
        """
        offset = np.int32(len(self._files))
        for number, part in enumerate(parts):
            if number == 0:
                self._files += part.files
            self._numbers.append(part.numbers)
            self._file_ids.append(part.file_ids + offset)
            for name, values in part.columns.items():
                if name not in self._columns:
                    self._columns[name] = self._scratch.column()
                self._columns[name].append(values)
            self._nested |= part.nested

    def finish(self) -> Cells:
        """Returns all rows; there has to be a part."""
        columns = {name: column.finish() for name, column in self._columns.items()}
        return Cells(self._files, self._file_ids.finish(), self._numbers.finish(), columns, self._nested)


def gather(parts: Iterable[Cells], scratch: Scratch = MEMORY) -> Cells:
    """Stacks rows of the same files.

    Args:
        parts: The rows, at least one part.
        scratch: Where they lie.
    """
    grown = GrowingCells(scratch)
    grown.append(parts)
    return grown.finish()


def strip_column(cells: Cells, column: str, scratch: Scratch) -> tuple[Strings, Mask]:
    """Removes the spaces around the cells of a column.

    Args:
        cells: Cells that include the column.
        column: The column.
        scratch: Where the result lies.

    Returns:
        The column, and which of its cells are empty.
    """
    values, empty = scratch.column(), list[Mask]()
    for part in cells.parts(column):
        texts = np.strings.strip(part.columns[column])
        values.append(texts)
        empty.append(texts == "")
    return values.finish(), np.concatenate(empty)
