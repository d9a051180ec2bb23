"""The cells of a table, as they are written in its files: strings, and the file and row each stands in."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from finetune.core.errors import did_you_mean
from finetune.data.table.faults import Fault

# Strings in one block of memory instead of a Python object each: worker processes share it without copying.
Strings: TypeAlias = npt.NDArray[Any]  # of dtype StringDType
Integers: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]

CHUNK = 10_000  # rows held as Python objects at a time


@dataclass(frozen=True, eq=False)
class Cells:
    """Columns of a table, nothing interpreted.

    Attributes:
        files: The table's files, as the user named them.
        file_ids: Int32 array of shape (N,): the position in `files` of each row's file.
        numbers: Array of shape (N,): each row's number in its file (int64), or its key in a tar (strings).
        columns: A string array of shape (N,) for each column asked for.
        nested: The columns that hold lists or objects, written as JSON, in some file.
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
        """The cells of a single file."""
        return cls((file,), np.zeros(len(numbers), np.int32), numbers, columns, nested)

    @classmethod
    def gather(cls, file: str, names: Sequence[str], records: Iterable[tuple[int, Sequence[str]]]) -> Self:
        """Gathers rows into columns, with few of them as Python objects at any time.

        Args:
            file: Where the rows stand.
            names: The columns.
            records: Number and cells of each row, the cells in the order of `names`.
        """
        pieces: list[list[Strings]] = [[as_strings([])] for _ in names]
        numbers: list[Integers] = [np.empty(0, np.int64)]
        remaining = iter(records)
        while chunk := list(islice(remaining, CHUNK)):
            numbers.append(np.array([number for number, _ in chunk], dtype=np.int64))
            for position, piece in enumerate(pieces):
                piece.append(as_strings([record[position] for _, record in chunk]))
        columns = {name: np.concatenate(piece) for name, piece in zip(names, pieces, strict=True)}
        return cls.of_file(file, np.concatenate(numbers), columns)

    @classmethod
    def join(cls, parts: Sequence["Cells"]) -> "Cells":
        """Puts the rows of several files under each other."""
        if len(parts) == 1:
            return parts[0]
        offsets = np.cumsum([0, *(len(part.files) for part in parts[:-1])])
        return cls(
            files=tuple(file for part in parts for file in part.files),
            file_ids=np.concatenate(
                [part.file_ids + np.int32(offset) for part, offset in zip(parts, offsets, strict=True)]
            ),
            numbers=np.concatenate([part.numbers for part in parts]),
            columns={name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
            nested=frozenset().union(*(part.nested for part in parts)),
        )

    def select(self, names: Sequence[str]) -> "Cells":
        """Some of the columns."""
        return replace(self, columns={name: self.columns[name] for name in names})

    def take(self, kept: Mask | Integers) -> "Cells":
        """The rows that a mask or positions choose."""
        columns = {name: column[kept] for name, column in self.columns.items()}
        return Cells(self.files, self.file_ids[kept], self.numbers[kept], columns, self.nested)

    def without(self, faults: Iterable[Fault]) -> "Cells":
        """The rows that no fault names."""
        faulty = {(fault.file, fault.row) for fault in faults}
        places = zip(self.file_ids.tolist(), self.numbers.tolist(), strict=True)
        return self.take(np.array([(self.files[file], row) not in faulty for file, row in places], dtype=bool))

    def faults_where(self, wrong: Mask, column: str, rule: str, repair: Callable[[str], str] | str) -> Iterator[Fault]:
        """Yields a fault for each cell of a column that is wrong.

        Args:
            wrong: Which rows are.
            column: The column.
            rule: What was expected, a noun phrase.
            repair: What to do about it, or a function that says so for a value.
        """
        found = (self.file_ids[wrong], self.numbers[wrong], self.columns[column][wrong])
        for file, row, value in zip(*(part.tolist() for part in found), strict=True):
            yield Fault(
                self.files[file], row, column, value, rule, repair if isinstance(repair, str) else repair(value)
            )

    def faults_of_nested(self, column: str, repair: str) -> Iterator[Fault]:
        """Yields a fault for each cell of a column that is a list or an object where one text is expected.

        Args:
            column: The column.
            repair: What to do about it.
        """
        if column in self.nested:  # elsewhere a text that looks like JSON is the text that it is
            ends = [text[:1] + text[-1:] for text in self.columns[column].tolist()]
            yield from self.faults_where(np.isin(ends, ["[]", "{}"]), column, "a text", repair)


def as_strings(values: Sequence[str]) -> Strings:
    """Copies Python strings into one compact array."""
    return np.array(values, dtype=np.dtypes.StringDType())


def parse_numbers(values: Strings) -> tuple[Floats, Mask]:
    """Reads cells as numbers.

    Args:
        values: String array of shape (N,).

    Returns:
        The numbers, NaN for empty cells, "nan", and whatever is none; and which cells are none.

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
    """Finds the columns that are missing or there twice.

    Args:
        file: The table's file.
        row: The header's row, where there is one.
        found: The columns of the file.
        wanted: The columns asked for.
    """
    twice = [name for name in dict.fromkeys(found) if name and found.count(name) > 1]
    rule, repair = "each column's name once", "Rename or remove the others of that name."
    faults = [Fault(file, row, name, name, rule, repair) for name in twice]
    for name in wanted:
        if name not in found:
            repair = did_you_mean(name, filter(None, found))
            faults.append(Fault(file, row, None, ",".join(found), f"a column {name!r}", repair))
    return faults
