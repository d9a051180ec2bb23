"""The rows of a table that was read and found to be without fault."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune.data.table.cells import Integers, Mask, Strings
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.filters import Removed
from finetune.data.table.label_sets import LabelSets
from finetune.data.table.splits import SPLITS, Codes


@dataclass(frozen=True, eq=False)
class Rows:
    """Columns of N rows, compact enough that worker processes share a million of them.

    Attributes:
        source: The table as the user named it: a file, a pattern, or `DataFrame`.
        files: The files it was read from.
        images: String array of shape (N,): absolute paths; each is a file, or a member of a tar (see `Member`).
        captions: String array of shape (N,): captions, or the names of the classes where there are none.
        label_ids: Int64 array of shape (N,): positions in `classes`, -1 for rows without a label; of several labels
            the one that the fewest rows have.
        classes: Names of the classes in natural order ('9' before '10'), empty in tables without labels.
        image_ids: Int64 array of shape (N,), equal for the same image path, or for the same cell of the table's
            `image_id` column.
        caption_ids: Int64 array of shape (N,), equal for the same caption; the label in tables without captions, or
            the position in `label_sets`.
        splits: Int8 array of shape (N,): positions in `SPLITS`.
        weights: Float32 array of shape (N,): how much each row counts in the loss.
        items: Int64 array of shape (N,), equal for rows of which training sees one an epoch.
        file_ids: Int32 array of shape (N,): the position in `files` of each row's file.
        numbers: Int64 array of shape (N,): each row's number as a spreadsheet shows it (the header is row 1); in JSON
            lines the line's; in Parquet files and DataFrames counted from 0. In tars a string array: the samples' keys.
        removed: Each condition of the filter, and how many rows it removed.
        label_sets: The distinct sets of labels, in tables that may have several labels a row; else None.
    """

    source: Path
    files: tuple[Path, ...]
    images: Strings
    captions: Strings
    label_ids: Integers
    classes: tuple[str, ...]
    image_ids: Integers
    caption_ids: Integers
    splits: Codes
    weights: npt.NDArray[np.float32]
    items: Integers
    file_ids: npt.NDArray[np.int32]
    numbers: Integers | Strings
    removed: tuple[Removed, ...] = ()
    label_sets: LabelSets | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def number(self, row: int) -> int | str:
        """The number of a row in its file, as a spreadsheet shows it: the header is row 1. In a tar its key."""
        number: int | str = self.numbers[[row]].tolist()[0]
        return number

    def file(self, row: int) -> Path:
        """The file that a row stands in."""
        return self.files[int(self.file_ids[row])]

    def place(self, row: int) -> str:
        """Where a row stands, as `file:row`."""
        return f"{self.file(row)}:{self.numbers[row]}"

    def indices(self, split: str) -> Integers:
        """The positions of a split's rows, ascending.

        Args:
            split: `train`, `val` or `test`.
        """
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def labels_of(self, row: int) -> Integers:
        """The label ids of a row, ascending: one, or none or several where there are `label_sets`."""
        if self.label_sets is None:
            return self.label_ids[row : row + 1]
        return self.label_sets[int(self.caption_ids[row])]

    def labelled(self) -> tuple[Integers, Integers]:
        """Each row with each of its labels: positions of rows, ascending, and label ids, of one length."""
        if self.label_sets is not None:
            return self.label_sets.pairs(self.caption_ids)
        rows = np.flatnonzero(self.label_ids >= 0)
        return rows, self.label_ids[rows]

    def targets(self, rows: Integers) -> Mask:
        """Which labels rows have.

        Args:
            rows: Int64 array of shape (B,): positions of rows.

        Returns:
            Bool array of shape (B, classes), or (B, 0) in tables with one label a row or none.
        """
        if self.label_sets is None:
            return np.zeros((len(rows), 0), dtype=bool)
        found = np.zeros((len(rows), len(self.classes)), dtype=bool)
        found[self.label_sets.pairs(self.caption_ids[rows])] = True
        return found

    def require(self, *splits: str) -> None:
        """Checks that splits have rows; and, where rows may be without labels, that each split has a label.

        Raises:
            TableFaultsError: If one of them has none.
        """
        counts = ", ".join(f"{len(self.indices(split)):,} {split}" for split in SPLITS)
        repair = (
            f"The rows are: {counts}. Mark more rows in a split column; or give a fraction above 0 and add images, "
            "as each class keeps one for training."
        )
        faults = [
            Fault(str(self.source), None, None, None, f"rows in the split {split!r}", repair)
            for split in splits
            if not len(self.indices(split))
        ]
        repair = "Nothing can be measured without any: mark a row with labels as one of the split."
        faults += [
            Fault(str(self.source), None, None, None, f"a label on a row of the split {split!r}", repair)
            for split in SPLITS
            if self.label_sets is not None and len(rows := self.indices(split)) and (self.label_ids[rows] < 0).all()
        ]
        if faults:
            raise TableFaultsError(faults)
