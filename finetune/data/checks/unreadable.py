"""Rows whose images cannot be read: how workers report them, whether they stop a run, and the list of skipped rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from finetune.core.csv_text import format_rows, read_rows, shield
from finetune.core.errors import TableError
from finetune.core.files import write_text
from finetune.data.checks.concerns import count
from finetune.data.prepare.images import FORMATS
from finetune.data.prepare.members import place_of
from finetune.data.table.faults import SHOWN, Fault, TableFaultsError
from finetune.data.table.rows import Rows


class Unreadable(NamedTuple):
    """A worker's report of a row whose image it cannot read or augment.

    Attributes:
        row: Position of the row in the table.
        reason: The reason in a few words.
        repair: What helps where augmentations fail on an image that can be read; else empty.
        is_lost: Whether its shard cannot be fetched, which stops a run in any case; the reason is then a whole message.
    """

    row: int
    reason: str
    repair: str = ""
    is_lost: bool = False


class SkippedRow(NamedTuple):
    """A row that was left out.

    Attributes:
        file: The table's file.
        row: The row's number in the file, or the sample's key in a tar.
        image: Path of the image.
        reason: Why the image cannot be read.
    """

    file: str
    row: str
    image: str
    reason: str


class BadImages:
    """Decides whether an unreadable image is an error, and remembers the rows that were left out.

    Args:
        on_bad_image: `error` stops at the image, `skip` leaves its row out.

    Attributes:
        reasons: Position of each row left out so far, and why its image cannot be read.

    Raises:
        ValueError: If `on_bad_image` is another word.
    """

    def __init__(self, on_bad_image: str) -> None:
        if on_bad_image not in ("error", "skip"):
            raise ValueError(f"Expected on_bad_image to be error or skip, but got {on_bad_image!r}.")
        self.on_bad_image = on_bad_image
        self.reasons: dict[int, str] = {}

    def report(self, rows: Rows, unreadable: Sequence[Unreadable], column: str) -> None:
        """Stops at unreadable images, or notes that their rows are left out.

        Args:
            rows: The table.
            unreadable: The rows and the reasons.
            column: The column of the image paths.

        Raises:
            TableError: If an unreadable image is an error, or a shard cannot be fetched.
        """
        if lost := [found.reason for found in unreadable if found.is_lost]:
            raise TableError(lost[0])
        if self.on_bad_image == "error":
            faults = dict.fromkeys(image_fault(rows, found, column) for found in unreadable)
            raise TableError(f"{TableFaultsError([*faults])}\n`finetune check --full` finds all such images.")
        self.reasons.update({found.row: found.reason for found in unreadable})


def image_fault(rows: Rows, unreadable: Unreadable, column: str) -> Fault:
    """Turns an image that cannot be read or augmented into a fault of the table.

    Args:
        rows: The table.
        unreadable: The row and the reason.
        column: The column of the image paths.
    """
    row, reason, repair, _ = unreadable
    rule = "an image that suits data.augmentations"
    if not repair:
        rule = f"a whole image ({', '.join(FORMATS)})"
        reason, repair = f"Reading it failed: {reason}", "Save it again"
    repair = f"{reason}. {repair}, remove its rows, or leave them out with data.on_bad_image: skip."
    return Fault(rows.file(row), rule, repair, rows.number(row), column, place_of(str(rows.images[row])))


def list_skipped(rows: Rows, reasons: Mapping[int, str]) -> tuple[SkippedRow, ...]:
    """Lists the rows that were left out, in the table's order; a row with several captions is listed once.

    Args:
        rows: The table.
        reasons: Position of each row, and why its image cannot be read.
    """
    found = (
        SkippedRow(rows.file(row), str(rows.number(row)), place_of(str(rows.images[row])), reasons[row])
        for row in sorted(reasons)
    )
    return tuple({skipped[:2]: skipped for skipped in found}.values())


def describe_skipped(skipped: Sequence[SkippedRow], file: Path | None = None) -> list[str]:
    """Counts the rows that were left out and says what is wrong with each; returns no line if there are none.

    Args:
        skipped: The rows.
        file: The file that lists all rows, so that ten suffice here; None lists all here.
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
    """Writes the rows that were left out as a CSV file, if there are any.

    Args:
        path: The file.
        skipped: The rows.
    """
    if skipped:
        write_text(path, format_rows(SkippedRow._fields, (map(shield, row) for row in skipped)))


def read_skipped(path: Path) -> tuple[SkippedRow, ...]:
    """Reads what `write_skipped` wrote, or nothing if there is no file."""
    return tuple(SkippedRow(**row) for row in read_rows(path)) if path.is_file() else ()
