"""Divides a data set that will not grow: with an even share of each label in every split, or by the hash of a text."""

import hashlib
from collections.abc import Sequence

import numpy as np

from finetune.data.table.cells import Integers
from finetune.data.table.row_images import hash_keys
from finetune.data.table.splits import SPLITS, Codes


def draw_evenly(keys: Sequence[str], label_ids: Integers, val: float, test: float) -> Codes:
    """Draws the split of each image of a finished data set, whose split is then written into a column.

    Images are ordered by label and the BLAKE2b hash of their key. Each label's first image stays in training. Of the
    others, evenly spaced ones are held out until the fractions of all images are met, which takes the same share of
    each label's other images, to within two. So one more image moves others, as it never does in a `RandomSplit`.

    Args:
        keys: The name of each image, all different.
        label_ids: Int64 array of shape (images,).
        val: Fraction of the images for validation.
        test: The same for the test split.

    Returns:
        Int8 array of shape (images,), positions in `SPLITS`.
    """
    order = np.lexsort((hash_keys(keys, len(keys), seed=0), label_ids))
    ordered_labels = label_ids[order]
    is_first = np.append(True, ordered_labels[1:] != ordered_labels[:-1])
    candidates = order[~is_first]
    val_count, test_count = (int(part * len(keys) + 0.5) for part in (val, test))
    held = min(val_count + test_count, len(candidates))
    codes = np.zeros(len(keys), dtype=np.int8)
    if held:
        count = np.arange(held)
        chosen = candidates[(2 * count + 1) * len(candidates) // (2 * held)]
        both = val_count + test_count
        is_test = (count + 1) * test_count // both > count * test_count // both
        codes[chosen] = np.where(is_test, SPLITS.index("test"), SPLITS.index("val"))
    return codes


def draw_number(text: str) -> float:
    """Draws a number from 0 to 1 that depends on a text alone, by SHA-256.

    Args:
        text: What shall lie in one split, such as the name of a family.

    Example:
        >>> draw_number("crow") == draw_number("crow"), draw_number("crow") == draw_number("owl")
        (True, False)
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48
