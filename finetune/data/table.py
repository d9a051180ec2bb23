"""A table of images with captions or labels: where it lies, what its columns mean, and its rows."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune.data.cells import Cells, Integers, Strings, as_strings, read_csv
from finetune.data.faults import Fault, TableFaultsError
from finetune.data.image_files import ImageFiles, find_images
from finetune.data.rows import Rows
from finetune.data.splits import UNKNOWN, Codes, RandomSplit, encode_splits, nearest_split
from finetune.errors import RecipeError, did_you_mean

__all__ = ["RandomSplit", "Rows", "Table"]


@dataclass(frozen=True)
class Table:
    """A CSV file with one row for each image and caption, or image and label.

    With `caption`, a row's text is its caption; with `label` alone, its label written into templates. With
    `label`, what counts as a match and what is evaluated are the labels, also where there are captions.
    Cells are strings: "None", "NA" and "007" stay what they are; spaces around captions, labels and splits do
    not count.

    Args:
        path: CSV file, UTF-8, with a header.
        image: Column of image paths.
        caption: Column of captions.
        label: Column of labels, one a row.
        split: Column that holds `train`, `val` or `test`, or fractions to draw them by.
        images: Folder that the image paths are relative to; null for the table's own folder.

    Raises:
        RecipeError: If neither `caption` nor `label` is given.

    Example:
        >>> Table("photos.csv", caption="text", split=RandomSplit(val=0.2, test=0.2)).image
        'image'
    """

    path: str
    image: str = "image"
    caption: str | None = None
    label: str | None = None
    split: str | RandomSplit = field(default_factory=RandomSplit)
    images: str | None = None

    def __post_init__(self) -> None:
        if self.caption is None and self.label is None:
            raise RecipeError(
                "Expected data.table.caption or data.table.label to name a column, but got neither. "
                "Pass --data.table.caption COLUMN, or --data.table.label COLUMN."
            )

    def read(self, required: Sequence[str] = ("train", "test")) -> Rows:
        """Reads and checks the table.

        Args:
            required: Splits that must have rows. Validation rows are optional for training.

        Raises:
            TableFaultsError: With every fault of the file, its rows and its images; a `TableError`.
        """
        faults: list[Fault] = []
        names = (self.image, self.caption, self.label, self.split if isinstance(self.split, str) else None)
        cells = read_csv(Path(self.path).expanduser(), [name for name in names if name is not None], faults)
        folder = self._find_folder()
        files = _check_images(cells, self.image, folder, faults)
        captions = None if self.caption is None else _check_texts(cells, self.caption, "a caption", faults)
        labels = None if self.label is None else _check_texts(cells, self.label, "a label", faults)
        splits = _check_splits(cells, self.split, faults) if isinstance(self.split, str) else None
        if faults:
            raise TableFaultsError(sorted(faults, key=lambda fault: fault.row or 0))

        classes: tuple[str, ...] = ()
        label_ids = np.full(len(cells), -1, dtype=np.int64)
        if labels is not None:
            classes, label_ids = number_classes(labels)
        if isinstance(self.split, RandomSplit):
            splits = _draw_splits(self.split, files, label_ids, folder)
        assert splits is not None
        caption_ids = label_ids
        if captions is not None:
            caption_ids = np.unique(captions, return_inverse=True)[1].astype(np.int64)
        rows = Rows(
            source=Path(self.path).expanduser(),
            images=files.paths[files.ids],
            captions=as_strings(classes)[label_ids] if captions is None else captions,
            label_ids=label_ids,
            classes=classes,
            image_ids=files.ids,
            caption_ids=caption_ids,
            splits=splits,
            numbers=cells.numbers,
        )
        rows.require(*required)
        return rows

    def _find_folder(self) -> str:
        if self.images is None:
            return str(Path(self.path).expanduser().absolute().parent)
        folder = Path(self.images).expanduser().absolute()
        if not folder.is_dir():
            beside = [other.name for other in folder.parent.glob("*") if other.is_dir()]
            repair = did_you_mean(folder.name, beside) if beside else f"{folder.parent} holds no folder."
            rule = "data.table.images to be a folder"
            raise TableFaultsError([Fault(self.path, None, None, self.images, rule, repair)])
        return str(folder)


def number_classes(labels: Strings) -> tuple[tuple[str, ...], Integers]:
    """Names the classes in natural order, and numbers each row's.

    Args:
        labels: String array of shape (N,).

    Returns:
        The names, and an int64 array of shape (N,) of positions in them.

    Example:
        >>> number_classes(as_strings(["10", "9", "10"]))
        (('9', '10'), array([1, 0, 1]))
    """
    names, inverse = np.unique(labels, return_inverse=True)
    order = sorted(range(len(names)), key=lambda position: _natural_key(str(names[position])))
    positions = np.empty(len(order), dtype=np.int64)
    positions[order] = np.arange(len(order))
    return tuple(str(names[position]) for position in order), positions[inverse]


def _natural_key(name: str) -> tuple[list[tuple[str, int]], str]:
    """Text and numbers in turn: 'b10c' becomes [('b', 10), ('c', -1)]; the name itself decides between equals."""
    parts = re.findall(r"([^0-9]*)([0-9]*)", name)
    return [(text, int(digits) if digits else -1) for text, digits in parts], name


def _check_images(cells: Cells, column: str, folder: str, faults: list[Fault]) -> ImageFiles:
    values = cells.columns[column]
    files, refused = find_images(values, folder)
    if refused:
        for row, value in zip(cells.numbers.tolist(), values.tolist(), strict=True):
            if reason := refused.get(value):
                faults.append(Fault(cells.file, row, column, value, *reason))
    return files


def _check_texts(cells: Cells, column: str, rule: str, faults: list[Fault]) -> Strings:
    texts = np.strings.strip(cells.columns[column])
    repair = "Fill it in or remove the row."
    faults += _faults_where(texts == "", cells, column, rule, lambda _: repair)
    return texts


def _check_splits(cells: Cells, column: str, faults: list[Fault]) -> Codes:
    names = np.strings.strip(cells.columns[column])
    codes = encode_splits(names)
    faults += _faults_where(codes == UNKNOWN, cells, column, "train, val or test", nearest_split)
    return codes


def _faults_where(
    wrong: npt.NDArray[np.bool_], cells: Cells, column: str, rule: str, repair: Callable[[str], str]
) -> list[Fault]:
    found = zip(cells.numbers[wrong].tolist(), cells.columns[column][wrong].tolist(), strict=True)
    return [Fault(cells.file, row, column, value, rule, repair(value)) for row, value in found]


def _draw_splits(split: RandomSplit, files: ImageFiles, label_ids: Integers, folder: str) -> Codes:
    """Draws by image; an image that several rows label differently counts for the first of its classes."""
    image_labels = np.full(len(files.paths), np.iinfo(np.int64).max)
    np.minimum.at(image_labels, files.ids, label_ids)
    prefix = folder.rstrip(os.sep) + os.sep
    paths = [path.removeprefix(prefix).replace(os.sep, "/") for path in files.paths.tolist()]
    return split.draw(paths, image_labels)[files.ids]
