"""Divides rows into training, validation and test: by a column, by files, or by a draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from finetune.core.errors import RecipeError, did_you_mean
from finetune.data.table.cells import Cells, Integers
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.sources import find_files, find_folder

SPLITS = ("train", "val", "test")
UNKNOWN = -1
# Other names for the splits, too different to be found by spelling.
OTHER_NAMES = {
    "dev": "val",
    "development": "val",
    "eval": "val",
    "evaluation": "val",
    "training": "train",
    "valid": "val",
    "validation": "val",
    "testing": "test",
}

Codes: TypeAlias = npt.NDArray[np.int8]


@dataclass(frozen=True)
class RandomSplit:
    """Draws the splits, the same on every machine and in every order of the rows; or reads them from their own files.

    All rows of an image fall into one split. The draw orders images by the BLAKE2b hash of seed and path (relative to
    the images' folder), label by label. Each label's first image stays in training. From the other images, the draw
    holds out evenly spaced ones until the fractions of all images are met, which takes the same share of each label's
    other images, to within two. So the fractions hold overall: large labels give a little more, because small ones
    have little to give. If too few images are left for both splits, the test split comes first. An image with several
    labels counts for its rarest.

    Args:
        val: Fraction of the images for validation, 0 for none; or a file or pattern with the validation rows, which
            are then read beside those of `data.table.path`. Without `data.table.images`, their image paths are
            relative to their own folder.
        test: The same for the test split.
        seed: Another number draws other images.

    Raises:
        RecipeError: If a fraction is negative, or the fractions leave nothing for training.
    """

    val: float | str = 0.1
    test: float | str = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, fraction in zip(("val", "test"), self.fractions, strict=True):
            if not 0 <= fraction < 1:
                raise RecipeError(f"Expected split.{name} to be a fraction from 0 to below 1, but got {fraction}.")
        if sum(self.fractions) >= 1:
            raise RecipeError(
                f"Expected split.val + split.test to be below 1, but got {self.val} + {self.test}. "
                "Leave a fraction for training."
            )

    @property
    def fractions(self) -> tuple[float, float]:
        """The fractions to draw for validation and test."""
        val, test = (0.0 if isinstance(part, str) else part for part in (self.val, self.test))
        return val, test

    @property
    def files(self) -> dict[str, str]:
        """The file or pattern of each split that has its own."""
        return {split: part for split, part in (("val", self.val), ("test", self.test)) if isinstance(part, str)}

    def of_files(self, files: Sequence[str]) -> Codes:
        """Returns the split of each file of a table.

        Args:
            files: The files of `data.table.path`, then those of the splits, in the order of `read_cells`.

        Returns:
            Int8 array of shape (files,): positions in `SPLITS`, -1 for a file whose rows are drawn.

        Raises:
            TableFaultsError: If two splits name the same file.
        """
        own = [SPLITS.index(name) for name, pattern in self.files.items() for _ in find_files(pattern)]
        codes = [UNKNOWN] * (len(files) - len(own)) + own
        found: dict[Path, set[int]] = {}
        for file, code in zip(files, codes, strict=True):
            found.setdefault(Path(file).resolve(), set()).add(code)
        twice = [file for file in dict.fromkeys(files) if len(found[Path(file).resolve()]) > 1]
        if twice:
            repair = "Name it in only one of data.table.path, split.val and split.test."
            raise TableFaultsError([Fault(file, "a file of one split", repair) for file in twice])
        return np.array(codes, dtype=np.int8)

    def folders_of(self, files: Sequence[str], folder: str) -> list[str]:
        """Returns the folder that the image paths of each file are relative to.

        Args:
            files: The files, as for `of_files`.
            folder: The folder of `data.table.path`.
        """
        own = {SPLITS.index(name): str(find_folder(pattern)) for name, pattern in self.files.items()}
        return [own.get(code, folder) for code in self.of_files(files).tolist()]

    def draw(self, paths: Sequence[str], label_ids: Integers) -> Codes:
        """Draws the split of each image.

        Args:
            paths: The distinct paths of the images.
            label_ids: Int64 array of shape (images,), all equal in tables without labels.

        Returns:
            Int8 array of shape (images,), positions in `SPLITS`.
        """
        digests = (blake2b(f"{self.seed}\0{path}".encode(), digest_size=8).digest() for path in paths)
        order = np.lexsort((np.frombuffer(b"".join(digests), dtype=">u8"), label_ids))
        ordered_labels = label_ids[order]
        is_first = np.append(True, ordered_labels[1:] != ordered_labels[:-1])
        candidates = order[~is_first]
        val, test = (max(1, int(part * len(paths) + 0.5)) if part else 0 for part in self.fractions)
        held = min(val + test, len(candidates))
        codes = np.zeros(len(paths), dtype=np.int8)
        if held:
            count = np.arange(held)
            chosen = candidates[(2 * count + 1) * len(candidates) // (2 * held)]
            is_test = (count + 1) * test // (val + test) > count * test // (val + test)
            is_test[0] |= test > 0 and not is_test.any()  # too few for both: a run needs test rows, not val rows
            codes[chosen] = np.where(is_test, SPLITS.index("test"), SPLITS.index("val"))
        return codes


def draw_splits(split: RandomSplit, cells: Cells, keys: Sequence[str], ids: Integers, label_ids: Integers) -> Codes:
    """Returns the split of each row: that of its file, or the one drawn for its image.

    Args:
        split: The fractions and files.
        cells: The rows.
        keys: The text that decides the draw of each image, such as its path.
        ids: Int64 array of shape (N,): the position in `keys` of each row's image.
        label_ids: Int64 array of shape (N,). An image that rows label differently counts for the first class.

    Raises:
        TableFaultsError: If two splits name the same file.
    """
    codes = split.of_files(cells.files)[cells.file_ids]
    is_drawn = codes == UNKNOWN
    if not is_drawn.any():  # a filter has left only rows of the splits' own files
        return codes
    images, positions = np.unique(ids[is_drawn], return_inverse=True)
    labels = np.full(len(images), np.iinfo(np.int64).max)
    np.minimum.at(labels, positions, label_ids[is_drawn])
    codes[is_drawn] = split.draw([keys[image] for image in images.tolist()], labels)[positions]
    return codes


def read_splits(cells: Cells, column: str, faults: list[Fault]) -> Codes:
    """Reads the split of each row as a position in `SPLITS`; spaces around it do not count.

    Args:
        cells: Cells that include the column.
        column: The column.
        faults: Receives a fault for each cell that names no split; its code is `UNKNOWN`.
    """
    names = np.strings.strip(cells.columns[column])
    codes = np.full(len(names), UNKNOWN, dtype=np.int8)
    for code, split in enumerate(SPLITS):
        codes[names == split] = code
    faults += cells.faults_where(codes == UNKNOWN, column, "train, val or test", _suggest_split)
    return codes


def _suggest_split(name: str) -> str:
    return did_you_mean(OTHER_NAMES.get(name.casefold(), name.casefold()), SPLITS)
