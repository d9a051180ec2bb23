"""CSV files, and those with other separators, as cells."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.data.table.bounds import check_width
from finetune.data.table.cells import Cells, check_columns
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.quotes import (
    NONE,
    Records,
    count_swallowed,
    has_spaced,
    is_spaced,
    long_fields,
    quotes_enclose,
)
from finetune.data.table.text_files import Blocks, TextFile, count_lines

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
STATE_SEPARATOR = "state data.table.separator"
OTHER_QUOTES = "'`\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb"


def read_csv(
    path: Path, names: Sequence[str], separator: str, quoting: str | None, faults: list[Fault]
) -> Iterator[Cells]:
    """Reads columns of a text file with a header, some rows at a time. The header is row 1.

    Quoted fields may hold separators, doubled quotes and line ends. Blank lines are skipped but counted. No field
    becomes a missing value or a number: "NA" and "007" stay what they are.

    Args:
        path: The file; faults name it as given here.
        names: The columns to keep, that of the images first.
        separator: The character between fields.
        quoting: `minimal` if quotes enclose fields, `none` if not; None decides by the file, and refuses quotes that
            seem to swallow rows.
        faults: Receives a fault for each row that has more or fewer fields than the header.

    Raises:
        TableFaultsError: If the file cannot be read or its header cannot be used.
    """
    with long_fields():
        yield from _read(path, names, separator, quoting, faults)


def _read(
    path: Path, names: Sequence[str], separator: str, quoting: str | None, faults: list[Fault]
) -> Iterator[Cells]:
    file, text = str(path), TextFile.open(path, _row_at)
    enclose = quotes_enclose(text, separator) if quoting is None else quoting == "minimal"
    records = Records(text, separator, enclose, file, faults)
    rows = iter(records)
    header_row, header = next(rows, (1, []))
    if not header:
        repair = "Write a header that names the columns, and a row for each image below it."
        raise TableFaultsError([*faults, Fault(file, "a table with a header and rows", repair)])
    if wide := check_width(file, header_row, len(header)):
        raise TableFaultsError(wide)
    if wrong := check_columns(file, header_row, header, names):
        raise TableFaultsError([_explain_separator(fault, header, separator) for fault in wrong])
    positions = [header.index(name) for name in names]
    doubts = quoting is None and enclose and text.has_quotes
    spaces = doubts and any(has_spaced(block, separator) for block in text.blocks())
    checks = _Checks(file, header, separator, positions[0], records, doubts, spaces)
    before, count = len(faults), 0
    whole = checks.select(rows, faults)
    for part in Cells.of_records(file, names, ((number, [fields[at] for at in positions]) for number, fields in whole)):
        count += len(part)
        yield part
    if not count and len(faults) == before:
        raise TableFaultsError([Fault(file, "rows below the header", "Write one for each image.")])


def _row_at(before: Blocks) -> int:
    try:
        return sum(1 for _ in csv.reader(line for block in before() for line in io.StringIO(block, newline="")))
    except csv.Error:
        return count_lines(before)


def _explain_separator(fault: Fault, header: list[str], separator: str) -> Fault:
    """Names the separator of a header that seems to have a single column."""
    for other, spelt in SEPARATORS.items():
        if len(header) == 1 and other != separator and other in header[0]:
            return fault._replace(
                repair=f"The fields seem to be separated by {spelt}: {STATE_SEPARATOR}, or save the file "
                f"with {SEPARATORS.get(separator, repr(separator))}."
            )
    return fault


@dataclass(frozen=True)
class _Checks:
    """What is expected of the records of a file, and where they stand for faults."""

    file: str
    header: list[str]
    separator: str
    image: int
    records: Records
    doubts_quotes: bool
    has_spaced: bool

    def select(self, rows: Iterable[tuple[int, list[str]]], faults: list[Fault]) -> Iterator[tuple[int, list[str]]]:
        """Yields the records that have as many fields as the header and sound quotes; the others become faults."""
        width, doubts, spaces = len(self.header), self.doubts_quotes, self.has_spaced
        for number, fields in rows:
            if doubts and (spaces or not self.records.is_one_line()) and (fault := self._find_quotes(number, fields)):
                faults.append(fault)
            elif len(fields) == width:
                yield number, fields
            else:
                rule = f"{width} field{'s' * (width != 1)}, as many as in the header"
                repair = f"This row has {len(fields)}.{self._explain_width(fields)}"
                faults.append(Fault(self.file, rule, repair, number, value=self.separator.join(fields)))

    def _explain_width(self, fields: list[str]) -> str:
        if self.records.is_cut():
            return " A carriage return ends a row: put the text that holds it in double quotes."
        if len(fields) < len(self.header):
            return ""
        if any(value.lstrip()[:1] in OTHER_QUOTES for value in fields if value.strip()):
            return f' Only straight double quotes, right after the separator, enclose a text: {self.separator}"…".'
        return " Put a text that holds a comma in double quotes."

    def _find_quotes(self, number: int, fields: list[str]) -> Fault | None:
        """Finds a quote after spaces, or one that swallowed rows."""
        lines = self.records.lines()
        spaced = [at for at, value in enumerate(fields) if is_spaced(value)] if self.has_spaced else []
        if spaced and has_spaced("".join(lines), self.separator):
            repair = f"Remove the spaces before the quote. {NONE}."
            return self._fault(number, spaced[0], "a quote right after the separator", repair, fields[spaced[0]])
        if len(lines) < 2 or len(fields) <= self.image:
            return None
        count = count_swallowed(lines, fields[self.image], self.separator, len(self.header), self.image)
        if not count:
            return None
        at = next(at for at, value in enumerate(fields) if "\n" in value or "\r" in value)
        found = "the next line looks like a row" if count == 1 else f"{count:,} lines look like rows"
        repair = (
            f"Before the next quote {found} of the table. Double the quote and enclose the text in quotes. "
            f"{NONE}; if this is one text, --data.table.quoting minimal."
        )
        return self._fault(number, at, "a text that ends before the next row", repair, lines[0].rstrip("\r\n"))

    def _fault(self, number: int, at: int, rule: str, repair: str, value: str) -> Fault:
        column = self.header[at] if at < len(self.header) else None
        return Fault(self.file, rule, repair, number, column, value)
