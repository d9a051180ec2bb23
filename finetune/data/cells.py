"""The cells of a table's file, as they are written in it: strings, and the row each stands in."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from finetune.data.faults import Fault, TableFaultsError
from finetune.errors import did_you_mean

# Strings in one block of memory instead of a Python object each: worker processes share it without copying.
Strings: TypeAlias = npt.NDArray[Any]  # of dtype StringDType
Integers: TypeAlias = npt.NDArray[np.int64]

CHUNK = 10_000  # rows held as Python objects at a time
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True, eq=False)
class Cells:
    """Columns of a table, nothing interpreted.

    Attributes:
        file: The table, as the user named it.
        columns: A string array of shape (N,) for each column asked for.
        numbers: Int64 array of shape (N,): the row of each entry as a spreadsheet shows it; the header is row 1.
    """

    file: str
    columns: dict[str, Strings]
    numbers: Integers

    def __len__(self) -> int:
        return len(self.numbers)


def as_strings(values: Sequence[str]) -> Strings:
    """Copies Python strings into one compact array."""
    return np.array(values, dtype=np.dtypes.StringDType())


def read_csv(path: Path, names: Iterable[str], faults: list[Fault]) -> Cells:
    """Reads columns of a UTF-8 file with commas between fields and a header.

    Quoted fields may hold commas, doubled quotes and line ends. Blank lines are skipped but counted. A field is
    never taken for a missing value or a number: "NA" and "007" stay what they are.

    Args:
        path: The file; faults name it as it is given here.
        names: The columns to keep.
        faults: Receives a fault for each row whose fields are not as many as the header's.

    Raises:
        TableFaultsError: If the file cannot be read or its header is not usable.
    """
    file, text = str(path), read_text(path)
    records = _read_records(text, file, faults)
    header_row, header = next(records, (1, []))
    if not header:
        repair = "Write a header that names the columns, and a row for each image below it."
        raise TableFaultsError([*faults, Fault(file, None, None, None, "a table with a header and rows", repair)])
    kept = list(dict.fromkeys(names))
    if wrong := [*_check_header(file, header_row, header), *_find_missing(file, header_row, header, kept)]:
        raise TableFaultsError(wrong)
    positions = [header.index(name) for name in kept]
    whole = _select_whole(records, len(header), file, faults)
    pieces: list[list[Strings]] = [[] for _ in kept]
    numbers: list[Integers] = []
    while chunk := list(islice(whole, CHUNK)):
        numbers.append(np.array([number for number, _ in chunk], dtype=np.int64))
        for piece, position in zip(pieces, positions, strict=True):
            piece.append(as_strings([record[position] for _, record in chunk]))
    if not numbers and not faults:
        raise TableFaultsError([Fault(file, None, None, None, "rows below the header", "Write one for each image.")])
    columns = {name: _join(piece) for name, piece in zip(kept, pieces, strict=True)}
    return Cells(file, columns, np.concatenate([np.empty(0, np.int64), *numbers]))


def read_text(path: Path) -> str:
    """Reads a UTF-8 file, with or without byte order mark.

    Raises:
        TableFaultsError: If there is no such file, it is not UTF-8, or it holds NUL characters.
    """
    file = str(path)
    if not path.is_file():
        kind = "folder" if path.is_dir() else None
        beside = [other.name for other in path.parent.glob("*") if other.is_file()]
        repair = did_you_mean(path.name, beside) if 0 < len(beside) <= 100 else f"Nothing is at {path.absolute()}."
        raise TableFaultsError([Fault(file, None, None, kind, "the table to be a file", repair)])
    try:
        content = path.read_bytes()
    except OSError as error:
        rule, repair = "a file that can be read", "Check its permissions and disk."
        raise TableFaultsError([Fault(file, None, None, str(error), rule, repair)]) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = _row_at(content[: error.start].decode("utf-8"))
        found = f"byte 0x{content[error.start]:02x} at position {error.start}"
        raise TableFaultsError([Fault(file, row, None, found, "UTF-8 text", _explain_bytes(content))]) from error
    if "\0" in text:
        row = _row_at(text[: text.index("\0")])
        raise TableFaultsError([Fault(file, row, None, "\0", "text without NUL characters", _explain_bytes(content))])
    return text


def _explain_bytes(content: bytes) -> str:
    if content.startswith(b"PK\x03\x04"):
        return "This is a spreadsheet or an archive: export the table as CSV (UTF-8)."
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "This is UTF-16: save the file as UTF-8."
    return "Save the file as UTF-8 text."


def _row_at(before: str) -> int:
    """The row in which the text after `before` goes on."""
    try:
        return sum(1 for _ in csv.reader(io.StringIO(f"{before}x", newline="")))
    except csv.Error:
        return before.count("\n") + 1


def _read_records(text: str, file: str, faults: list[Fault]) -> Iterator[tuple[int, list[str]]]:
    """Yields number and fields of each record that is not blank, up to the first that is wrongly quoted."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = line = 0
    try:
        for number, record in enumerate(reader, start=1):
            if record:
                yield number, record
            line = reader.line_num
    except csv.Error as error:
        opening = next(islice(io.StringIO(text, newline=""), line, None)).rstrip("\r\n")
        repair = f"Close each quoted field, and double the quotes inside it ({error}). What follows was not read."
        faults.append(Fault(file, number + 1, None, opening, "fields quoted as in CSV", repair))


def _check_header(file: str, row: int, header: list[str]) -> list[Fault]:
    twice = [name for name in dict.fromkeys(header) if name and header.count(name) > 1]
    rule, repair = "each column's name once", "Rename or remove the others of that name."
    return [Fault(file, row, name, name, rule, repair) for name in twice]


def _find_missing(file: str, row: int, header: list[str], names: list[str]) -> list[Fault]:
    faults = []
    for name in names:
        if name not in header:
            repair = did_you_mean(name, filter(None, header))
            for separator, spelt in SEPARATORS.items():
                if len(header) == 1 and separator in header[0]:
                    repair = f"The fields seem to be separated by {spelt}: save the file with commas."
            faults.append(Fault(file, row, None, ",".join(header), f"a column {name!r}", repair))
    return faults


def _select_whole(
    records: Iterable[tuple[int, list[str]]], width: int, file: str, faults: list[Fault]
) -> Iterator[tuple[int, list[str]]]:
    """Yields the records with as many fields as the header has; the others become faults."""
    for number, record in records:
        if len(record) == width:
            yield number, record
            continue
        rule = f"{width} field{'s' * (width != 1)}, as many as in the header"
        quotes = " Put a text that holds a comma in double quotes." if len(record) > width else ""
        repair = f"This row has {len(record)}.{quotes}"
        faults.append(Fault(file, number, None, ",".join(record), rule, repair))


def _join(pieces: list[Strings]) -> Strings:
    return np.concatenate([as_strings([]), *pieces])
