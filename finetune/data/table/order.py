"""The rows of a table by split, and those of training by item: computed once for a table that is kept."""

from typing import NamedTuple

import numpy as np

from finetune.data.table.cells import Integers


class Items(NamedTuple):
    """Items of one or more rows each.

    Attributes:
        rows: Int64 array of shape (N,): positions in the table, item by item.
        starts: Int64 array of shape (items,): where each item begins in `rows`; None where each is a single row.
    """

    rows: Integers
    starts: Integers | None


class Order(NamedTuple):
    """What would have to be computed of all rows before the first batch.

    Attributes:
        splits: The positions of each split's rows, ascending, in the order of `SPLITS`.
        items: The items of which training draws a row each.
        images: Number of different images in each split.
    """

    splits: tuple[Integers, ...]
    items: Items
    images: tuple[int, ...]


def group_items(rows: Integers, items: Integers) -> Items:
    """Groups rows with equal numbers into items, in the order of their first rows.

    Args:
        rows: Positions in the table, ascending.
        items: Int64 array of shape (N,): the number of each of these rows.
    """
    _, first, inverse = np.unique(items, return_index=True, return_inverse=True)
    if len(first) == len(rows):
        return Items(rows, None)
    by_item = np.argsort(first[inverse], kind="stable")
    return Items(rows[by_item], np.searchsorted(first[inverse][by_item], np.sort(first)))
