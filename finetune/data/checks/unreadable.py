"""Rows whose images cannot be read: what a worker says of them, what follows, and the list of those left out."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from finetune.core.errors import TableError
from finetune.core.files import write_text
from finetune.data.checks.concerns import count
from finetune.data.prepare.images import FORMATS
from finetune.data.prepare.members import place_of
from finetune.data.table.faults import SHOWN, Fault, TableFaultsError
from finetune.data.table.rows import Rows


class Unreadable(NamedTuple):
    """What a worker says of a row whose image it cannot read or augment.

    Attributes:
        row: Position of the row in the table.
        reason: Why, in a few words.
    """

    row: int
    reason: str


class SkippedRow(NamedTuple):
    """A row that was left out.

    Attributes:
        file: The table's file.
        row: The row's number in it, in a tar its key.
        image: Path of the image.
        reason: Why it cannot be read.
    """

    file: str
    row: str
    image: str
    reason: str


class BadImages:
    """Decides what an image that cannot be read does, and remembers the rows that were left out.

    Args:
        on_bad_image: `error` stops, `skip` leaves its row out.

    Attributes:
        reasons: Why the image cannot be read, by position of the row, of the rows left out so far.

    Raises:
        ValueError: If `on_bad_image` is another word.
    """

    def __init__(self, on_bad_image: str) -> None:
        if on_bad_image not in ("error", "skip"):
            raise ValueError(f"Expected on_bad_image to be error or skip, but got {on_bad_image!r}.")
        self.on_bad_image = on_bad_image
        self.reasons: dict[int, str] = {}

    def report(self, rows: Rows, unreadable: Sequence[Unreadable], column: str) -> None:
        """Stops at images that cannot be read, or notes down that their rows are left out.

        Args:
            rows: The table.
            unreadable: Its rows and the reasons.
            column: The column of the image paths.

        Raises:
            TableError: If such an image is an error.
        """
        if self.on_bad_image == "error":
            faults = dict.fromkeys(image_fault(rows, found, column) for found in unreadable)
            raise TableError(f"{TableFaultsError([*faults])}\n`finetune check --full` finds all such images.")
        self.reasons.update(unreadable)


def image_fault(rows: Rows, unreadable: Unreadable, column: str) -> Fault:
    """An unreadable image as a fault of the table.

    Args:
        rows: The table.
        unreadable: The row and the reason.
        column: The column of the image paths.
    """
    row, reason = unreadable
    file, image = str(rows.files[rows.file_ids[row]]), place_of(str(rows.images[row]))
    rule = f"a whole image ({', '.join(FORMATS)})"
    repair = (
        f"It cannot be read: {reason}. Save it again, remove its rows, or leave them out with data.on_bad_image: skip."
    )
    return Fault(file, rows.number(row), column, image, rule, repair)


def list_skipped(rows: Rows, reasons: Mapping[int, str]) -> tuple[SkippedRow, ...]:
    """The rows that were left out, in the table's order, each place once however many captions stand there.

    Args:
        rows: The table.
        reasons: Why the image cannot be read, by position of the row.
    """
    found = (
        SkippedRow(str(rows.file(row)), str(rows.number(row)), place_of(str(rows.images[row])), reasons[row])
        for row in sorted(reasons)
    )
    return tuple({skipped[:2]: skipped for skipped in found}.values())


def describe_skipped(skipped: Sequence[SkippedRow], file: Path | None = None) -> list[str]:
    """The count of the rows that were left out and what is wrong with each, for a screen; nothing for none.

    Args:
        skipped: The rows.
        file: Where all of them are written down, so that the screen need not show more than ten; None shows all.
    """
    if not skipped:
        return []
    rows = count(len(skipped), "row", "rows")
    shown = skipped if file is None else skipped[:SHOWN]
    place = "" if file is None else f"; all in {file}"
    lines = [f"skipped     {rows}, neither trained on nor measured, as the images cannot be read{place}"]
    lines += [f"  {row.file}:{row.row}: {row.image}: {row.reason}" for row in shown]
    return [*lines, f"  … and {len(skipped) - len(shown):,} more"] if len(shown) < len(skipped) else lines


def write_skipped(path: Path, skipped: Sequence[SkippedRow]) -> None:
    """Writes the rows that were left out as a CSV file; none where there are none.

    Args:
        path: The file.
        skipped: The rows.
    """
    if skipped:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([SkippedRow._fields, *skipped])
        write_text(path, text.getvalue())


def read_skipped(path: Path) -> tuple[SkippedRow, ...]:
    """Reads what `write_skipped` wrote; nothing where there is no file."""
    if not path.is_file():
        return ()
    lines = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
    return tuple(SkippedRow(**line) for line in lines)
