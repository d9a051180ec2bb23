"""Records of a text file with separators: whether quotes enclose its cells, and which quotes swallowed rows."""

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from finetune.data.table.faults import Fault
from finetune.data.table.text_files import TextFile

LONGEST_FIELD = 1 << 26  # characters; a longer field is a quote that was never closed
NONE = "If quotes are part of the texts, pass --data.table.quoting none"
_EXTENSION = re.compile(r"\.[A-Za-z]\w{0,4}$")


@contextmanager
def long_fields() -> Iterator[None]:
    """Lets `csv` read fields of more than 131,072 characters, then restores the limit of the whole process."""
    limit = csv.field_size_limit(LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


class Records:
    """The records of a text that are not blank, each with its number; broken quotes end them and become a fault.

    Args:
        text: The file.
        separator: The character between fields.
        enclose: Whether quotes enclose fields; else they are characters like any other.
        file: How faults name the file.
        faults: Receives the fault.
    """

    def __init__(self, text: TextFile, separator: str, enclose: bool, file: str, faults: list[Fault]) -> None:
        self._reader = csv.reader(
            self._remember(text.lines()),
            delimiter=separator,
            strict=True,
            quoting=csv.QUOTE_MINIMAL if enclose else csv.QUOTE_NONE,
        )
        self._text, self._file, self._faults = text, file, faults
        self._start = 0  # lines before the current record
        self._recent: list[str] = []  # the current record's, and the line before it

    def _remember(self, lines: Iterator[str]) -> Iterator[str]:
        for line in lines:
            self._recent.append(line)
            yield line

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        """Yields number and fields of each record, the number as a spreadsheet shows it, from 1."""
        number = 0
        try:
            for number, fields in enumerate(self._reader, start=1):
                if fields:
                    yield number, fields
                self._start = self._reader.line_num
                del self._recent[:-1]
        except csv.Error as error:
            rule, opening = "fields quoted as in CSV", self.lines()[0].rstrip("\r\n")
            repair = f"Close each quoted field, and double the quotes inside it ({error}). {NONE}. "
            repair += "The rows below were not read."
            self._faults.append(Fault(self._file, rule, repair, number + 1, value=opening))

    def is_one_line(self) -> bool:
        """Whether the current record is written on a single line."""
        return self._reader.line_num - self._start == 1

    def lines(self) -> list[str]:
        """Returns the lines of the current record, with their ends."""
        return self._recent[min(self._start, 1) :]

    def is_cut(self) -> bool:
        """Whether a lone carriage return ends the current record or the one before, in a text with other line ends."""
        return self._text.has_newlines and any(line.endswith("\r") for line in self._recent)


def quotes_enclose(text: TextFile, separator: str) -> bool:
    """Decides whether quotes enclose fields, on which files with tabs do not agree.

    They do, except where tabs cut each line into as many fields as the header, whatever its quotes, and one of these
    lines breaks the rules of CSV: its quote is not closed, or not doubled inside a text, or follows a space.

    Args:
        text: The file.
        separator: The character between fields.
    """
    if separator != "\t" or not text.has_quotes:
        return True
    rows = (line for line in text.lines() if line.strip("\r\n"))
    width = next(rows, "").count(separator)
    if any(line.count(separator) != width for line in rows):
        return True
    return _closes_in_each_line(text, separator)


def _closes_in_each_line(text: TextFile, separator: str) -> bool:
    reader = csv.reader(text.lines(), delimiter=separator, strict=True)
    try:
        is_closed = all(reader.line_num == number for number, _ in enumerate(reader, start=1))
    except csv.Error:
        return False
    return is_closed and not any(has_spaced(block, separator) for block in text.blocks())


def has_spaced(text: str, separator: str) -> bool:
    """Returns whether a quote stands after spaces at the start of a line or after a separator.

    Args:
        text: Lines of a file.
        separator: The character between fields.
    """
    # Literals first, and one search for each start: much faster than one pattern for both.
    spaces = [space for space in " \t\u00a0\u3000" if space != separator]
    if not any(f'{space}"' in text for space in spaces):
        return False
    starts = (re.escape(separator), "\n", r"\A")
    return any(re.search(f'{start}[{"".join(spaces)}]+"', text) for start in starts)


def is_spaced(field: str) -> bool:
    """Returns whether a quote that is part of a field stands at its start, after spaces."""
    return field[:1].isspace() and field.lstrip()[:1] == '"'


def count_swallowed(lines: Sequence[str], path: str, separator: str, width: int, image: int) -> int:
    """Counts the lines of a record that look like rows of their own: as many fields, and a path where images stand.

    The lines of a long text are none, as they hardly hold what looks like a path in that place.

    Args:
        lines: The record's lines, two or more.
        path: The record's image.
        separator: The character between fields.
        width: Number of fields of the header.
        image: The position of the image among them.

    Returns:
        The number of such lines after the first, or 0 where the record is sound.
    """
    first, *inner, last = (line.rstrip("\r\n").split(separator) for line in lines)

    def is_row(fields: Sequence[str]) -> bool:
        return len(fields) == width and _resembles(fields[image], path)

    found = sum(map(is_row, inner))
    # The last line of a sound record holds the end of a text, and perhaps its image; then the first does not.
    return found + 1 if is_row(last) and len(first) >= width and _resembles(first[image], path) else found


def _resembles(value: str, path: str) -> bool:
    """Returns whether a value may be another path of the same table."""
    if _EXTENSION.search(path):
        return _EXTENSION.search(value) is not None
    return _kinds(value) == _kinds(path)


def _kinds(text: str) -> set[str]:
    return {"0" if character.isdigit() else "a" if character.isalpha() else character for character in text}
