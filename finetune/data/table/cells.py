"""The cells of a table exactly as its files hold them: strings, each with its file and row."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from finetune.core.errors import did_you_mean
from finetune.data.table.faults import Fault

# Strings in one block of memory rather than a Python object each: worker processes share it without copying.
Strings: TypeAlias = npt.NDArray[Any]  # of dtype StringDType
Integers: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]

CHUNK = 10_000  # rows held as Python objects at a time
PART = 100_000  # rows looked at at a time


@dataclass(frozen=True, eq=False)
class Cells:
    """Columns of a table, not yet interpreted.

    Attributes:
        files: The table's files, as the user named them.
        file_ids: Int32 array of shape (N,): the position in `files` of each row's file.
        numbers: Array of shape (N,): each row's number in its file (int64), or its key in a tar (strings).
        columns: A string array of shape (N,) for each requested column, or what is read like one (`StoredStrings`).
        nested: The columns in which some file holds lists or objects, written as JSON.
    """

    files: tuple[str, ...]
    file_ids: npt.NDArray[np.int32]
    numbers: Integers | Strings
    columns: dict[str, Strings]
    nested: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def of_file(
        cls, file: str, numbers: Integers | Strings, columns: dict[str, Strings], nested: frozenset[str] = frozenset()
    ) -> Self:
        """Wraps the cells of a single file."""
        return cls((file,), np.zeros(len(numbers), np.int32), numbers, columns, nested)

    @classmethod
    def of_records(
        cls, file: str, names: Sequence[str], records: Iterable[tuple[int, Sequence[str]]]
    ) -> Iterator[Self]:
        """Yields the columns of some rows at a time, at least once; few rows are Python objects at a time.

        They are held as tuples of texts, which Python's garbage collector soon leaves alone; lists it would visit again
        and again.

        Args:
            file: The file of the rows.
            names: The columns.
            records: Number and cells of each row, the cells in the order of `names`.
        """
        remaining = iter(records)
        is_first = True
        while (chunk := [(number, tuple(record)) for number, record in islice(remaining, CHUNK)]) or is_first:
            is_first = False
            numbers = np.array([number for number, _ in chunk], dtype=np.int64)
            columns = zip(*(record for _, record in chunk), strict=True) if chunk else ((),) * len(names)
            yield cls.of_file(
                file, numbers, {name: as_strings(cells) for name, cells in zip(names, columns, strict=True)}
            )

    def parts(self, *names: str) -> Iterator["Cells"]:
        """Yields some rows at a time, at least once, with columns as arrays.

        Args:
            names: The columns; none for all.
        """
        for start in range(0, max(1, len(self)), PART):
            rows = slice(start, start + PART)
            columns = {name: self.columns[name][rows] for name in names or self.columns}
            yield Cells(self.files, self.file_ids[rows], self.numbers[rows], columns, self.nested)

    def select(self, names: Sequence[str]) -> "Cells":
        """Keeps some of the columns."""
        return replace(self, columns={name: self.columns[name] for name in names})

    def take(self, kept: Mask | Integers) -> "Cells":
        """Keeps the rows that a mask or positions choose."""
        columns = {name: column[kept] for name, column in self.columns.items()}
        return Cells(self.files, self.file_ids[kept], self.numbers[kept], columns, self.nested)

    def where(self, kept: Mask) -> Iterator["Cells"]:
        """Yields the rows that a mask chooses, some at a time.

        Args:
            kept: Bool array of shape (N,).
        """
        start = 0
        for part in self.parts():
            yield part.take(kept[start : start + len(part)])
            start += len(part)

    def without(self, faults: Iterable[Fault]) -> Iterator["Cells"]:
        """Yields the rows that no fault names, some at a time.

        Args:
            faults: The faults.
        """
        faulty = {(fault.file, fault.row) for fault in faults}
        for part in self.parts():
            places = zip(part.file_ids.tolist(), part.numbers.tolist(), strict=True)
            yield part.take(np.array([(self.files[file], row) not in faulty for file, row in places], dtype=bool))

    def faults_where(self, wrong: Mask, column: str, rule: str, repair: Callable[[str], str] | str) -> Iterator[Fault]:
        """Yields a fault for each wrong cell of a column.

        Args:
            wrong: Which rows are wrong.
            column: The column.
            rule: What was expected, a noun phrase.
            repair: How to repair a cell, or a function that says so for its value.
        """
        found = (self.file_ids[wrong], self.numbers[wrong], self.columns[column][wrong])
        for file, row, value in zip(*(part.tolist() for part in found), strict=True):
            advice = repair if isinstance(repair, str) else repair(value)
            yield Fault(self.files[file], rule, advice, row, column, value)

    def faults_of_nested(self, column: str, repair: str) -> Iterator[Fault]:
        """Yields a fault for each cell that holds a list or an object where one text is expected.

        Args:
            column: The column.
            repair: How to repair a cell.
        """
        if column not in self.nested:  # there, a text that looks like JSON is a text
            return
        for part in self.parts(column):
            ends = [text[:1] + text[-1:] for text in part.columns[column].tolist()]
            yield from part.faults_where(np.isin(ends, ["[]", "{}"]), column, "a text", repair)


def as_strings(values: Sequence[str]) -> Strings:
    """Copies strings into one compact array."""
    return np.array(values, dtype=np.dtypes.StringDType())


def find_distinct(texts: Strings) -> tuple[Strings, Integers, Integers]:
    """Returns each text once, sorted; its first position; and for each text its number among them.

    `np.unique` does so by a stable sort. Without `return_index` it sorts by another one, which ends the process on
    strings in some orders, such as sorted twice over (seen with NumPy 2.4.6).

    Args:
        texts: String array of shape (N,).
    """
    distinct, first, inverse = np.unique(texts, return_index=True, return_inverse=True)
    return distinct, first, inverse.astype(np.int64)


def find_first_rows(numbers: Integers) -> Integers:
    """Returns the first position of each number, in 8 bytes each.

    Args:
        numbers: Int64 array of shape (N,), of at least 0.

    Returns:
        Int64 array of shape (largest number + 1,): -1 for a number that is nowhere.

    Example:
        >>> find_first_rows(np.array([2, 0, 2]))
        array([ 1, -1,  0])
    """
    found = np.full(int(numbers.max(initial=-1)) + 1, -1, dtype=np.int64)
    for start in reversed(range(0, len(numbers), PART)):
        part = numbers[start : start + PART]
        found[part[::-1]] = np.arange(start, start + len(part))[::-1]  # of equal numbers the last that is written stays
    return found


def number_strings(column: Any) -> tuple[Integers, Integers]:
    """Numbers texts in their order, which is that of the code points; equal texts alike.

    Args:
        column: N texts, an array or `StoredStrings`.

    Returns:
        The position of the first row of each distinct text, in the order of the texts, and an int64 array of shape (N,)
        with the number of each row's text.
    """
    return find_distinct(column)[1:] if isinstance(column, np.ndarray) else column.number()


def parse_numbers(values: Strings) -> tuple[Floats, Mask]:
    """Reads cells as numbers.

    Args:
        values: String array of shape (N,).

    Returns:
        The numbers, with NaN for empty cells, for "nan" and for other texts; and a mask of those other texts.

    Example:
        >>> parse_numbers(as_strings(["1", " .5", "", "many"]))
        (array([1. , 0.5, nan, nan]), array([False, False, False,  True]))
    """
    texts = np.strings.strip(values)
    texts = np.where(texts == "", "nan", texts)
    try:
        return texts.astype(np.float64), np.zeros(len(texts), dtype=bool)
    except ValueError:
        wrong = np.array([not _is_number(text) for text in texts.tolist()], dtype=bool)
        return np.where(wrong, "nan", texts).astype(np.float64), wrong


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def check_columns(file: str, row: int | None, found: Sequence[str], wanted: Sequence[str]) -> list[Fault]:
    """Returns a fault for each missing column and for each name that several columns share.

    Args:
        file: The table's file.
        row: The header's row, if the file has a header.
        found: The columns of the file.
        wanted: The requested columns.
    """
    twice = [name for name, times in Counter(found).items() if name and times > 1]
    rule, repair = "each column's name once", "Rename or remove the others of that name."
    missing = [name for name in wanted if name not in found]
    return [Fault(file, rule, repair, row, name, name) for name in twice] + [
        Fault(file, f"a column {name!r}", did_you_mean(name, filter(None, found)), row, value=",".join(found))
        for name in missing
    ]
