"""Tries the augmentations on the sizes of the training images, so that training meets none that they fail on."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt
from PIL import Image

from finetune.data.checks.unreadable import Unreadable, image_fault
from finetune.data.prepare.augmentation import Augmentation, Refused
from finetune.data.table.cells import Integers
from finetune.data.table.faults import Fault
from finetune.data.table.rows import Rows

DRAWS = 64
"""How often each size is tried at most: what `OneOf` holds is drawn."""

PIXELS = 1 << 24
"""Pixels that are augmented of a size at most, after the first draw: large images cost no more than small ones."""


def find_refused(
    rows: Rows, column: str, sizes: npt.NDArray[np.int64], augmentation: Augmentation, seed: int
) -> tuple[Fault, ...]:
    """Finds training images that are too small for the augmentations, or that they fail on for another reason.

    Each size is tried on blank images with the draws that training makes. What suits an image suits larger ones, so
    most sizes need not be tried.

    Args:
        rows: The table.
        column: The column of the image paths, for the faults.
        sizes: Int64 array of shape (N, 2): width and height of each row's image, 0 where it cannot be read.
        augmentation: That of training.
        seed: Seed of the run.
    """
    training = rows.indices("train")
    training = training[sizes[training].all(axis=1)]
    distinct, ids = np.unique(sizes[training], axis=0, return_inverse=True)
    by_size = np.split(training[np.argsort(ids, kind="stable")], np.cumsum(np.bincount(ids))[:-1])
    suited: list[tuple[int, int]] = []
    found: list[Unreadable] = []
    for at in np.argsort(distinct.prod(axis=1), kind="stable").tolist():
        width, height = distinct[at].tolist()
        if any(width >= least[0] and height >= least[1] for least in suited):
            continue
        refused = _try_size(width, height, by_size[at], augmentation, seed)
        if refused is None:
            suited.append((width, height))
        else:
            found += [Unreadable(row, *refused) for row in by_size[at].tolist()]
    return tuple(dict.fromkeys(image_fault(rows, unreadable, column) for unreadable in sorted(found)))


def _try_size(width: int, height: int, rows: Integers, augmentation: Augmentation, seed: int) -> Refused | None:
    """Returns why the augmentations fail on images of a size, or None where they do not."""
    blank = Image.new("RGB", (width, height))
    for epoch, row in islice(_draws(rows), max(1, min(DRAWS, PIXELS // (width * height)))):
        augmented = augmentation.attempt(blank, seed, epoch, row)
        if isinstance(augmented, Refused):
            return augmented
    return None


def _draws(rows: Integers) -> Iterator[tuple[int, int]]:
    """Yields pairs of epoch and row: all rows of an epoch, then those of the next."""
    return ((epoch, row) for epoch in range(DRAWS) for row in rows.tolist())
