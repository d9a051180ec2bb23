"""The one writer and the one reader of CSV files that the toolkit writes: every text comes back as it was."""

import csv
import io
import re
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
_FORMULA = re.compile("'*[=+\\-@\\t\\r\uff1d\uff0b\uff0d\uff20]")
"""How a text begins that spreadsheets calculate, also after quotes that keep them from it."""
_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
_NUMBERS = re.compile(rf"{_NUMBER}( ?[|;,] ?{_NUMBER})*", re.ASCII)
"""Numbers, also several in a cell, as the scores of several labels are."""


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


def shield(cell: object) -> object:
    """Keeps a spreadsheet from taking a text for a formula: a quote before it says that it is a text.

    Numbers stay as they are. `read_rows` and `read_frame` take the quote away again.

    Args:
        cell: A text, or anything else, which is returned as it is.

    Example:
        >>> [shield(cell) for cell in ("=1+1", "-5", "a cat", 7)]
        ["'=1+1", '-5', 'a cat', 7]
    """
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBERS.fullmatch(cell) else cell


def shield_frame(frame: "DataFrame") -> "DataFrame":
    """Shields each text of a table, see `shield`.

    Args:
        frame: The table.
    """
    texts = frame.select_dtypes(["object", "str", "category"]).columns
    return frame.assign(**{name: frame[name].astype(object).map(shield) for name in texts})


def _unshield(cell: str) -> str:
    return cell[1:] if isinstance(cell, str) and cell.startswith("'") and _FORMULA.match(cell) else cell


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads what `format_rows` gave: the cells of each row by column, without what `shield` added.

    Args:
        path: The file.
    """
    rows = csv.DictReader(io.StringIO(path.read_bytes().decode(), newline=""))
    return [{name: _unshield(cell) for name, cell in row.items()} for row in rows]


def read_frame(path: Path, texts: Iterable[str] | None = None) -> "DataFrame":
    """Reads what `format_frame` gave: cells are strings, so that nothing is taken for a number or for missing.

    What `shield` added is taken away.

    Args:
        path: The file.
        texts: The columns to read so, where the others may be numbers; None for all.
    """
    import pandas as pd  # takes half a second, which those who write rows are spared

    dtype = "str" if texts is None else dict.fromkeys(texts, "str")
    frame = pd.read_csv(path, dtype=dtype, keep_default_na=False)
    named = [name for name in (frame.columns if texts is None else texts) if name in frame]
    return frame.assign(**{name: frame[name].map(_unshield).astype("str") for name in named})
