"""The rows of a table that was read and has no fault."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from finetune.data.prepare.members import place_of
from finetune.data.table.cells import Integers, Mask, Strings
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.filters import Removed
from finetune.data.table.label_sets import LabelSets
from finetune.data.table.order import Items, Order, group_items
from finetune.data.table.splits import SPLITS, Codes

CHUNK = 100_000  # rows looked at at a time


@dataclass(frozen=True, eq=False)
class Rows:
    """Columns of N rows: arrays, which worker processes share; in a table that is kept, those of a file.

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
        order: The rows by split and item, where a file holds them as well; else they are computed.
        kept: Where what is computed of the table may be kept too; None where nothing is.
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
    order: Order | None = None
    kept: Path | None = None

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

    def find(self, file_id: int, number: str) -> int | None:
        """Returns the first row of a number, or in a tar of a key; None where there is none.

        Args:
            file_id: The position of its file in `files`.
            number: The number as it is written in `place`.
        """
        rows = np.flatnonzero(self.file_ids == file_id)
        if self.numbers.dtype.kind != "i":
            return next((int(row) for row in rows if self.numbers[row] == number), None)
        found = rows[self.numbers[rows] == int(number)] if number.isdecimal() else rows[:0]
        return int(found[0]) if len(found) else None

    def name(self, row: int) -> str:
        """Returns the path of a row's image relative to the images' folder, or its place in a tar."""
        return self._name(str(self.images[row]))

    def names(self, start: int, stop: int) -> list[str]:
        """Returns the names of the rows from one to before another, see `name`."""
        return [self._name(image) for image in self.images[start:stop].tolist()]

    def _name(self, image: str) -> str:
        path, prefix = place_of(image), self.folder.rstrip(os.sep) + os.sep
        name = path.removeprefix(prefix) if path.startswith(prefix) else os.path.relpath(path, self.folder)
        return name.replace(os.sep, "/")

    def exceptions(self) -> Integers:
        """Returns the first row of each image that is in another split than its draw alone would put it in."""
        moved = np.flatnonzero(self.splits != self.drawn)
        return moved[np.sort(np.unique(self.image_ids[moved], return_index=True)[1])]

    def indices(self, split: str | Integers) -> Integers:
        """Returns the positions of a split's rows, ascending.

        Args:
            split: `train`, `val` or `test`; or positions, which are returned as they are.
        """
        if not isinstance(split, str):
            return split
        code = SPLITS.index(split)
        return np.flatnonzero(self.splits == code) if self.order is None else self.order.splits[code]

    def group(self, split: str | Integers) -> Items:
        """Groups rows into the items of which training draws a row each.

        Args:
            split: As for `indices`.
        """
        if self.order is not None and isinstance(split, str) and split == "train":
            return self.order.items
        rows = self.indices(split)
        return group_items(rows, self.items[rows])

    def count_images(self, split: str | Integers) -> int:
        """Counts the different images of rows.

        Args:
            split: As for `indices`.
        """
        if self.order is not None and isinstance(split, str):
            return self.order.images[SPLITS.index(split)]
        return len(np.unique(self.image_ids[self.indices(split)]))

    def with_splits(self, splits: Codes, drawn: Codes | None = None) -> Self:
        """Returns the same rows, split otherwise.

        Args:
            splits: Int8 array of shape (N,): positions in `SPLITS`, -1 for no split.
            drawn: The same, as the draw alone would have it; None leaves it as it is.
        """
        return replace(self, splits=splits, drawn=self.drawn if drawn is None else drawn, order=None)

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

    def count_labels(self, split: str) -> Integers:
        """Counts the rows of a split that have each label.

        Args:
            split: `train`, `val` or `test`.

        Returns:
            Int64 array of shape (classes,).
        """
        found, rows = np.zeros(len(self.classes), dtype=np.int64), self.indices(split)
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            if self.label_sets is None:
                labels = self.label_ids[part]
                labels = labels[labels >= 0]
            else:
                labels = self.label_sets.pairs(self.caption_ids[part])[1]
            found += np.bincount(labels, minlength=len(self.classes))
        return found

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
