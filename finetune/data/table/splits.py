"""Which rows are for training, validation and test: as a column says, or drawn by fraction."""

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
# What others call them, and what no comparison of letters would find.
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
    """Draws the splits, the same ones on every machine and for every order of the rows; or names files of their own.

    The draw goes by image: all rows of an image fall into one split. Images are ordered by the BLAKE2b hash of
    seed and path (relative to the images' folder), label by label. The first of each label is kept for training, and
    of the others evenly spaced ones are held out, as many as the fractions are of all images: of each label the same
    share of its others, to within two images. So the fractions hold overall, and labels of many images give somewhat
    more where those of few can give but little. Where too few are left for both, the test comes first. Of several
    labels an image counts for the one that the fewest rows have.

    Args:
        val: Fraction of the images for validation, 0 for none; or the file or pattern that holds its rows, which are
            then read beside those of `data.table.path`; without `data.table.images`, image paths are relative to its
            own folder.
        test: The same for the test.
        seed: Another number draws other images.

    Raises:
        RecipeError: If a fraction is negative or nothing is left for training.
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
        """What is drawn for validation and test."""
        val, test = (0.0 if isinstance(part, str) else part for part in (self.val, self.test))
        return val, test

    @property
    def files(self) -> dict[str, str]:
        """The files or patterns of the splits that have some of their own."""
        return {split: part for split, part in (("val", self.val), ("test", self.test)) if isinstance(part, str)}

    def of_files(self, files: Sequence[str]) -> Codes:
        """The split that each file of a table holds.

        Args:
            files: Those of `data.table.path`, then those of the splits, as `read_cells` reads them.

        Returns:
            Int8 array of shape (files,): positions in `SPLITS`, -1 for the files that rows are drawn from.

        Raises:
            TableFaultsError: If a file is in two splits.
        """
        own = [SPLITS.index(name) for name, pattern in self.files.items() for _ in find_files(pattern)]
        codes = [UNKNOWN] * (len(files) - len(own)) + own
        found: dict[Path, set[int]] = {}
        for file, code in zip(files, codes, strict=True):
            found.setdefault(Path(file).resolve(), set()).add(code)
        twice = [file for file in dict.fromkeys(files) if len(found[Path(file).resolve()]) > 1]
        if twice:
            repair = "Name it in one of data.table.path, split.val and split.test alone."
            raise TableFaultsError([Fault(file, None, None, None, "a file of one split", repair) for file in twice])
        return np.array(codes, dtype=np.int8)

    def folders_of(self, files: Sequence[str], folder: str) -> list[str]:
        """The folder that the image paths of each file are relative to.

        Args:
            files: As for `of_files`.
            folder: That of `data.table.path`.
        """
        own = {SPLITS.index(name): str(find_folder(pattern)) for name, pattern in self.files.items()}
        return [own.get(code, folder) for code in self.of_files(files).tolist()]

    def draw(self, paths: Sequence[str], label_ids: Integers) -> Codes:
        """Assigns images to splits.

        Args:
            paths: Path of each image, each once.
            label_ids: Int64 array of shape (images,), all equal where there are no labels.

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
            is_test[0] |= test > 0 and not is_test.any()  # of few candidates: a run requires test rows, not val rows
            codes[chosen] = np.where(is_test, SPLITS.index("test"), SPLITS.index("val"))
        return codes


def draw_splits(split: RandomSplit, cells: Cells, keys: Sequence[str], ids: Integers, label_ids: Integers) -> Codes:
    """The split of each row: that of its file, or as drawn for its image.

    Args:
        split: How.
        cells: The rows.
        keys: What the draw of an image goes by, such as its path.
        ids: Int64 array of shape (N,): the position in `keys` of each row's image.
        label_ids: Int64 array of shape (N,). An image that several rows label differently counts for the first class.

    Raises:
        TableFaultsError: If a file is in two splits.
    """
    codes = split.of_files(cells.files)[cells.file_ids]
    is_drawn = codes == UNKNOWN
    if not is_drawn.any():  # a filter has left rows of files alone
        return codes
    images, positions = np.unique(ids[is_drawn], return_inverse=True)
    labels = np.full(len(images), np.iinfo(np.int64).max)
    np.minimum.at(labels, positions, label_ids[is_drawn])
    codes[is_drawn] = split.draw([keys[image] for image in images.tolist()], labels)[positions]
    return codes


def read_splits(cells: Cells, column: str, faults: list[Fault]) -> Codes:
    """Reads the split of each row as a position in `SPLITS`; spaces around it do not count.

    Args:
        cells: With the column.
        column: The column.
        faults: Receives a fault for each cell that names no split; its code is `UNKNOWN`.
    """
    names = np.strings.strip(cells.columns[column])
    codes = np.full(len(names), UNKNOWN, dtype=np.int8)
    for code, split in enumerate(SPLITS):
        codes[names == split] = code
    faults += cells.faults_where(codes == UNKNOWN, column, "train, val or test", nearest_split)
    return codes


def nearest_split(name: str) -> str:
    """The sentence that names the split which was meant."""
    spelt = OTHER_NAMES.get(name.casefold(), name.casefold())
    return did_you_mean(spelt, SPLITS)
