"""The rows of a table that was read and has no fault."""

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finetune.data.prepare.members import place_of
from finetune.data.table.cells import Integers, Mask, Strings
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.filters import Removed
from finetune.data.table.label_sets import LabelSets
from finetune.data.table.splits import SPLITS, Codes


@dataclass(frozen=True, eq=False)
class Rows:
    """Columns of N rows, compact enough that worker processes share a million rows.

    Attributes:
        source: The table as the user named it: a file, a pattern, or `DataFrame`.
        files: The table's files.
        images: String array of shape (N,): absolute paths of image files, or addresses in tars (see `Member`).
        captions: String array of shape (N,): captions, or names of the classes in tables without captions.
        label_ids: Int64 array of shape (N,): positions in `classes`, -1 for rows without a label; the rarest of
            several labels.
        classes: Names of the classes in natural order ('9' before '10'), empty in tables without labels.
        image_ids: Int64 array of shape (N,), equal for the same image path, or for the same cell of the table's
            `image_id` column.
        caption_ids: Int64 array of shape (N,), equal for the same caption (in a data module, for the same tokens); in
            tables without captions the label, or the position in `label_sets`.
        splits: Int8 array of shape (N,): positions in `SPLITS`.
        drawn: The same, as the draw of each row's image alone would have it; equal where splits are not drawn.
        folder: The folder that image paths of `data.table.path` are relative to.
        weights: Float32 array of shape (N,): how much each row counts in the loss.
        items: Int64 array of shape (N,), equal for rows of which training draws one each epoch.
        file_ids: Int32 array of shape (N,): the position in `files` of each row's file.
        numbers: Int64 array of shape (N,): each row's number, as a spreadsheet shows it (the header is row 1); the
            line's in JSON lines; counted from 0 in Parquet files and DataFrames. In tars a string array: the samples'
            keys.
        removed: Each condition of the filter, and how many rows it removed.
        label_sets: The distinct sets of labels in tables with several labels a row; else None.
    """

    source: str
    files: tuple[str, ...]
    images: Strings
    captions: Strings
    label_ids: Integers
    classes: tuple[str, ...]
    image_ids: Integers
    caption_ids: Integers
    splits: Codes
    drawn: Codes
    folder: str
    weights: npt.NDArray[np.float32]
    items: Integers
    file_ids: npt.NDArray[np.int32]
    numbers: Integers | Strings
    removed: tuple[Removed, ...] = ()
    label_sets: LabelSets | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def number(self, row: int) -> int | str:
        """Returns the number of a row in its file as a Python object: an int, or in a tar the sample's key."""
        number: int | str = self.numbers[[row]].tolist()[0]
        return number

    def file(self, row: int) -> str:
        """Returns the file of a row."""
        return self.files[int(self.file_ids[row])]

    def place(self, row: int) -> str:
        """Returns the place of a row, as `file:row`."""
        return f"{self.file(row)}:{self.numbers[row]}"

    def name(self, row: int) -> str:
        """Returns the path of a row's image relative to the images' folder, or its place in a tar."""
        path, prefix = place_of(str(self.images[row])), self.folder.rstrip(os.sep) + os.sep
        name = path.removeprefix(prefix) if path.startswith(prefix) else os.path.relpath(path, self.folder)
        return name.replace(os.sep, "/")

    def exceptions(self) -> Integers:
        """Returns the first row of each image that is in another split than its draw alone would put it in."""
        moved = np.flatnonzero(self.splits != self.drawn)
        return moved[np.sort(np.unique(self.image_ids[moved], return_index=True)[1])]

    def indices(self, split: str) -> Integers:
        """Returns the positions of a split's rows, ascending.

        Args:
            split: `train`, `val` or `test`.
        """
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def labels_of(self, row: int) -> Integers:
        """Returns the label ids of a row, ascending: one, or with `label_sets` any number."""
        if self.label_sets is None:
            return self.label_ids[row : row + 1]
        return self.label_sets[int(self.caption_ids[row])]

    def labelled(self) -> tuple[Integers, Integers]:
        """Pairs each row with each of its labels: positions of rows, ascending, and label ids, of equal length."""
        if self.label_sets is not None:
            return self.label_sets.pairs(self.caption_ids)
        rows = np.flatnonzero(self.label_ids >= 0)
        return rows, self.label_ids[rows]

    def targets(self, rows: Integers) -> Mask:
        """Marks the labels that rows have.

        Args:
            rows: Int64 array of shape (B,): positions of rows.

        Returns:
            Bool array of shape (B, classes), or (B, 0) in tables with at most one label a row.
        """
        if self.label_sets is None:
            return np.zeros((len(rows), 0), dtype=bool)
        found = np.zeros((len(rows), len(self.classes)), dtype=bool)
        found[self.label_sets.pairs(self.caption_ids[rows])] = True
        return found

    def require(self, *splits: str) -> None:
        """Checks that splits have rows, and where rows may lack labels, that each split has a label.

        Raises:
            TableFaultsError: If a split has none.
        """
        counts = ", ".join(f"{len(self.indices(split)):,} {split}" for split in SPLITS)
        repair = (
            f"The rows are: {counts}. Mark more rows in a split column; or give a fraction above 0 and add images, "
            "as each class keeps one for training. A data.table.limit_rows of 1 leaves no test row."
        )
        faults = [
            Fault(self.source, f"rows in the split {split!r}", repair)
            for split in splits
            if not len(self.indices(split))
        ]
        repair = "Nothing can be measured without any: move a row with labels to the split."
        faults += [
            Fault(self.source, f"a label on a row of the split {split!r}", repair)
            for split in SPLITS
            if self.label_sets is not None and len(rows := self.indices(split)) and (self.label_ids[rows] < 0).all()
        ]
        if faults:
            raise TableFaultsError(faults)
