"""The one writer and the one reader of CSV files that the toolkit writes: every text comes back as it was."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from _csv import Writer

    from pandas import DataFrame


class _Written(Protocol):
    def write(self, text: str, /) -> object: ...


class _UnixEnds:
    """Ends rows with a line feed, where `csv` was told of both characters: it quotes only what the row's end holds."""

    def __init__(self, file: _Written) -> None:
        self._file = file

    def write(self, row: str) -> None:
        """Writes a row, as `csv` does."""
        self._file.write(f"{row.removesuffix(_END)}\n")


_END = "\r\n"


def csv_writer(file: _Written) -> "Writer":
    """Returns a writer of rows; a carriage return in a text is quoted, as readers would end the row at it.

    Args:
        file: A file that was opened with `newline=""`.
    """
    return csv.writer(_UnixEnds(file), lineterminator=_END)


def format_rows(header: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    r"""Returns rows as CSV with a header.

    Args:
        header: Names of the columns.
        rows: The cells of each row.

    Example:
        >>> format_rows(["row", "text"], [(2, "a, b"), (3, "c\rd")])
        'row,text\n2,"a, b"\n3,"c\rd"\n'
    """
    text = io.StringIO(newline="")
    writer = csv_writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def format_frame(frame: "DataFrame") -> str:
    """Returns a table as CSV with a header, without its index; missing values are empty.

    Args:
        frame: The table.
    """
    text = io.StringIO(newline="")
    rows: Any = _UnixEnds(text)  # pandas uses no more of a file
    frame.to_csv(rows, index=False, lineterminator=_END)
    return text.getvalue()


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads what `format_rows` gave: the cells of each row by column.

    Args:
        path: The file.
    """
    return [*csv.DictReader(io.StringIO(path.read_bytes().decode(), newline=""))]


def read_frame(path: Path, texts: Iterable[str] | None = None) -> "DataFrame":
    """Reads what `format_frame` gave: cells are strings, so that nothing is taken for a number or for missing.

    Args:
        path: The file.
        texts: The columns to read so, where the others may be numbers; None for all.
    """
    import pandas as pd  # takes half a second, which those who write rows are spared

    dtype = "str" if texts is None else dict.fromkeys(texts, "str")
    return pd.read_csv(path, dtype=dtype, keep_default_na=False)
