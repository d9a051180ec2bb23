"""CSV files, and those with other separators, as cells."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from finetune.data.table.cells import Cells, check_columns
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.text_files import read_text

LONGEST_FIELD = 1 << 26  # characters; a longer field is a quote that was never closed
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


@contextmanager
def long_fields() -> Iterator[None]:
    """Lets `csv` read fields of more than 131,072 characters, then restores the limit of the whole process."""
    limit = csv.field_size_limit(LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


@long_fields()
def read_csv(path: Path, names: Sequence[str], separator: str, faults: list[Fault]) -> Cells:
    """Reads columns of a text file with a header. The header is row 1.

    Quoted fields may hold separators, doubled quotes and line ends. Blank lines are skipped but counted. No field
    becomes a missing value or a number: "NA" and "007" stay what they are.

    Args:
        path: The file; faults name it as given here.
        names: The columns to keep.
        separator: The character between fields.
        faults: Receives a fault for each row that has more or fewer fields than the header.

    Raises:
        TableFaultsError: If the file cannot be read or its header cannot be used.
    """
    file, text = str(path), read_text(path, _row_at)
    records = _read_records(text, separator, file, faults)
    header_row, header = next(records, (1, []))
    if not header:
        repair = "Write a header that names the columns, and a row for each image below it."
        raise TableFaultsError([*faults, Fault(file, "a table with a header and rows", repair)])
    if wrong := check_columns(file, header_row, header, names):
        raise TableFaultsError([_explain_separator(fault, header, separator) for fault in wrong])
    positions = [header.index(name) for name in names]
    whole = _select_whole(records, len(header), file, faults)
    before = len(faults)
    cells = Cells.gather(file, names, ((number, [record[at] for at in positions]) for number, record in whole))
    if not len(cells) and len(faults) == before:
        raise TableFaultsError([Fault(file, "rows below the header", "Write one for each image.")])
    return cells


def _row_at(before: str) -> int:
    try:
        return sum(1 for _ in csv.reader(io.StringIO(f"{before}x", newline="")))
    except csv.Error:
        return before.count("\n") + 1


def _read_records(text: str, separator: str, file: str, faults: list[Fault]) -> Iterator[tuple[int, list[str]]]:
    """Yields number and fields of each record that is not blank, and stops at the first with broken quotes."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    number = line = 0
    try:
        for number, record in enumerate(reader, start=1):
            if record:
                yield number, record
            line = reader.line_num
    except csv.Error as error:
        opening = next(islice(io.StringIO(text, newline=""), line, None)).rstrip("\r\n")
        repair = f"Close each quoted field, and double the quotes inside it ({error}). The rows below were not read."
        faults.append(Fault(file, "fields quoted as in CSV", repair, number + 1, value=opening))


def _explain_separator(fault: Fault, header: list[str], separator: str) -> Fault:
    """Names the separator of a header that seems to have a single column."""
    for other, spelt in SEPARATORS.items():
        if len(header) == 1 and other != separator and other in header[0]:
            return fault._replace(
                repair=f"The fields seem to be separated by {spelt}: state data.table.separator, or save the file "
                f"with {SEPARATORS.get(separator, repr(separator))}."
            )
    return fault


def _select_whole(
    records: Iterable[tuple[int, list[str]]], width: int, file: str, faults: list[Fault]
) -> Iterator[tuple[int, list[str]]]:
    """Yields the records that have as many fields as the header; the others become faults."""
    for number, record in records:
        if len(record) == width:
            yield number, record
            continue
        rule = f"{width} field{'s' * (width != 1)}, as many as in the header"
        quotes = " Put a text that holds a comma in double quotes." if len(record) > width else ""
        repair = f"This row has {len(record)}.{quotes}"
        faults.append(Fault(file, rule, repair, number, value=",".join(record)))
