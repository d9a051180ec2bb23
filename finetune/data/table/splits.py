"""Divides rows into training, validation and test: by a column, by files, or by a draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from finetune.core.errors import RecipeError, did_you_mean
from finetune.data.remote.places import check_remote, is_remote
from finetune.data.table.cells import Cells, Integers, Strings
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.places import Place, write_out
from finetune.data.table.row_images import Hashes
from finetune.data.table.sources import find_folder, list_files

SPLITS = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)
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


class Draw(NamedTuple):
    """The splits of N rows, as positions in `SPLITS`.

    Attributes:
        splits: Int8 array of shape (N,): where each row is.
        drawn: Int8 array of shape (N,): where its image's hash alone puts it. Other than `splits` in exceptions only.
    """

    splits: Codes
    drawn: Codes

    def take(self, kept: Integers) -> "Draw":
        """Keeps the rows at some positions."""
        return Draw(self.splits[kept], self.drawn[kept])


@dataclass(frozen=True)
class RandomSplit:
    """Draws the splits, the same on every machine and in every order of the rows; or reads them from their own files.

    An image's split depends on itself alone, so a table that grows or shrinks, or whose labels are corrected, keeps its
    splits. The BLAKE2b hash of seed and path (relative to the images' folder) is a number from 0 to 1: below `test`
    the image is a test image, below `test` + `val` one for validation, else one for training. So the fractions hold as
    those of as many coins. All rows of an image fall into one split.

    Few images are exceptions, which `finetune check` and `finetune fit` name. A label without a training image keeps
    the one with the highest number. An empty test split, and then an empty validation split, gets the training image
    with the lowest number of those that their labels can spare; where there is none, it takes one from the other split,
    which for validation has to have two.

    Args:
        val: Fraction of the images for validation, 0 for none; or a file or pattern with the validation rows, which
            are then read beside those of `data.table.path`. Without `data.table.images`, their image paths are
            relative to their own folder.
        test: The same for the test split.
        seed: Another number draws other images.

    Raises:
        RecipeError: If a fraction is negative, or the fractions leave nothing for training.
    """

    val: float | Place = 0.1
    test: float | Place = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        write_out(self, "val", "test")
        for name, place in self.files.items():
            if is_remote(place):
                check_remote(place, f"data.table.split.{name}")
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
        val, test = (part if isinstance(part, int | float) else 0.0 for part in (self.val, self.test))
        return val, test

    @property
    def files(self) -> dict[str, str]:
        """The file or pattern of each split that has its own."""
        parts = (("val", self.val), ("test", self.test))
        return {split: str(part) for split, part in parts if isinstance(part, str | PathLike)}

    def of_files(self, files: Sequence[str]) -> Codes:
        """Returns the split of each file of a table.

        Args:
            files: The files of `data.table.path`, then those of the splits, in the order of `read_cells`.

        Returns:
            Int8 array of shape (files,): positions in `SPLITS`, -1 for a file whose rows are drawn.

        Raises:
            TableFaultsError: If two splits name the same file.
        """
        own = [SPLITS.index(name) for name, pattern in self.files.items() for _ in list_files(pattern)]
        codes = [UNKNOWN] * (len(files) - len(own)) + own
        found: dict[str, set[int]] = {}
        for file, code in zip(files, codes, strict=True):
            found.setdefault(_resolve(file), set()).add(code)
        twice = [file for file in dict.fromkeys(files) if len(found[_resolve(file)]) > 1]
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
        own = {SPLITS.index(name): find_folder(pattern) for name, pattern in self.files.items()}
        return [own.get(code, folder) for code in self.of_files(files).tolist()]

    def draw(self, hashes: Hashes, label_ids: Integers) -> Draw:
        """Draws the split of each row.

        Args:
            hashes: Uint64 array of shape (N,): the hash of each row's image.
            label_ids: Int64 array of shape (N,), all equal in tables without labels. Of several labels an image keeps
                its rarest in training.
        """
        val, test = self.fractions
        drawn = np.full(len(hashes), TRAIN, dtype=np.int8)
        drawn[hashes < _threshold(test + val)] = VAL
        drawn[hashes < _threshold(test)] = TEST
        splits = drawn.copy()
        splits[np.isin(hashes, _find_untrained(hashes, label_ids, splits))] = TRAIN
        if test and not (splits == TEST).any():
            nearest = [*_find_spare(hashes, label_ids, splits)[:1], *np.unique(hashes[splits == VAL])[:1]]
            splits[np.isin(hashes, nearest[:1])] = TEST
        if val and not (splits == VAL).any():
            nearest = [*_find_spare(hashes, label_ids, splits)[:1], *np.unique(hashes[splits == TEST])[1:][-1:]]
            splits[np.isin(hashes, nearest[:1])] = VAL
        return Draw(splits, drawn)


def draw_splits(split: RandomSplit, cells: Cells, hashes: Hashes, label_ids: Integers) -> Draw:
    """Returns the split of each row: that of its file, or the one drawn for its image.

    Args:
        split: The fractions and files.
        cells: The rows.
        hashes: Uint64 array of shape (N,): the hash of each row's image.
        label_ids: Int64 array of shape (N,).

    Raises:
        TableFaultsError: If two splits name the same file.
    """
    codes = split.of_files(cells.files)[cells.file_ids]
    is_drawn = codes == UNKNOWN
    found = Draw(codes, codes.copy())
    found.splits[is_drawn], found.drawn[is_drawn] = split.draw(hashes[is_drawn], label_ids[is_drawn])
    return found


def read_splits(cells: Cells, column: str, faults: list[Fault]) -> Codes:
    """Reads the split of each row as a position in `SPLITS`; spaces around it do not count.

    Args:
        cells: Cells that include the column.
        column: The column.
        faults: Receives a fault for each cell that names no split; its code is `UNKNOWN`.
    """
    codes = np.concatenate([_find_codes(np.strings.strip(part.columns[column])) for part in cells.parts(column)])
    faults += cells.faults_where(codes == UNKNOWN, column, "train, val or test", _suggest_split)
    return codes


def _find_codes(names: Strings) -> Codes:
    codes = np.full(len(names), UNKNOWN, dtype=np.int8)
    for code, split in enumerate(SPLITS):
        codes[names == split] = code
    return codes


def _resolve(file: str) -> str:
    return file if is_remote(file) else str(Path(file).resolve())


def _suggest_split(name: str) -> str:
    return did_you_mean(OTHER_NAMES.get(name.casefold(), name.casefold()), SPLITS)


def _threshold(fraction: float) -> np.uint64:
    return np.uint64(fraction * 2.0**64)


def _find_untrained(hashes: Hashes, label_ids: Integers, splits: Codes) -> Hashes:
    """The image with the highest hash of each label that has no training image."""
    labels, ids = np.unique(label_ids, return_inverse=True)
    is_trained = np.zeros(len(labels), dtype=bool)
    is_trained[ids[splits == TRAIN]] = True
    rows = np.flatnonzero(~is_trained[ids])
    order = rows[np.lexsort((hashes[rows], ids[rows]))]
    is_last = np.append(ids[order][1:] != ids[order][:-1], True)[: len(order)]
    found: Hashes = hashes[order[is_last]]
    return found


def _find_spare(hashes: Hashes, label_ids: Integers, splits: Codes) -> Hashes:
    """The training images whose labels all have another training image, ascending."""
    is_trained = splits == TRAIN
    labels, label_at = np.unique(label_ids[is_trained], return_inverse=True)
    images, image_at = np.unique(hashes[is_trained], return_inverse=True)
    pairs = np.unique(label_at * len(images) + image_at)
    label_of, image_of = pairs // max(1, len(images)), pairs % max(1, len(images))
    is_only = np.bincount(label_of, minlength=len(labels))[label_of] == 1
    return np.delete(images, image_of[is_only])
