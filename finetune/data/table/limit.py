"""Chooses few rows of a table that stand for all of them, for quick trials."""

import numpy as np

from finetune.data.table.cells import Floats, Integers
from finetune.data.table.row_images import Hashes
from finetune.data.table.splits import TEST, TRAIN, UNKNOWN, VAL, Codes

_FIRST_SPLITS = (TRAIN, TEST, VAL, UNKNOWN)
"""Which split comes first where not all fit."""


def choose_rows(limit: int, hashes: Hashes, splits: Codes, label_ids: Integers) -> Integers:
    """Chooses rows so that splits have their share of them, and in each split the classes.

    Each split gets a row before any gets a second, and in a split each class, as far as the limit goes: where not all
    classes fit, all splits start with the same. Of a class, the images with the lowest hashes are chosen. A higher
    limit keeps all rows of a lower one.

    Args:
        limit: How many rows, at least 1.
        hashes: Uint64 array of shape (N,): the hash of each row's image.
        splits: Int8 array of shape (N,): positions in `finetune.data.table.splits.SPLITS`, or -1.
        label_ids: Int64 array of shape (N,): classes, all equal in tables without labels.

    Returns:
        Int64 array of at most `limit` positions, ascending.
    """
    classes, class_ids = np.unique(label_ids, return_inverse=True)
    first = np.full(len(classes), np.iinfo(np.uint64).max)
    np.minimum.at(first, class_ids, hashes)
    split_ranks = np.argsort(_FIRST_SPLITS)[np.searchsorted(np.sort(_FIRST_SPLITS), splits)]
    in_class = _find_turns(split_ranks * len(classes) + class_ids, hashes)
    in_split = _find_turns(split_ranks, hashes, first[class_ids], in_class)
    chosen: Integers = np.sort(np.lexsort((split_ranks, in_split))[:limit])
    return chosen


def _find_turns(groups: Integers, *keys: Floats | Hashes) -> Floats:
    """When each row's turn comes, between 0 and 1: the first of each group at once, the others evenly over the time.

    Args:
        groups: Int64 array of shape (N,).
        keys: What orders the rows of a group, the most important last.
    """
    order = np.lexsort((*keys, groups))
    sizes = np.bincount(groups)
    starts = np.cumsum(sizes) - sizes
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[order] = np.arange(len(groups)) - starts[groups[order]]
    return np.where(ranks == 0, 0.0, (ranks + 0.5) / sizes[groups])
