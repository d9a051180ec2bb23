"""Chooses rows of the same image: evaluation sees each of them, training draws one each epoch."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from finetune.data.table.cells import Integers


@dataclass(frozen=True, eq=False)
class RowChoices:
    """Items of one or more rows each.

    Attributes:
        rows: Int64 array of shape (N,): positions in the table, item by item.
        starts: Int64 array of shape (items + 1,): where each item begins in `rows`, and the end.
    """

    rows: Integers
    starts: Integers

    @classmethod
    def of_each(cls, rows: Integers) -> Self:
        """Makes every row an item of its own.

        Args:
            rows: Positions in the table.
        """
        return cls(rows, np.arange(len(rows) + 1))

    @classmethod
    def of_items(cls, rows: Integers, items: Integers) -> Self:
        """Groups rows with equal numbers into items, in the order of their first rows.

        Args:
            rows: Positions in the table, ascending.
            items: Int64 array of shape (N,): the number of each of these rows.
        """
        _, first, inverse = np.unique(items, return_index=True, return_inverse=True)
        by_item = np.argsort(first[inverse], kind="stable")
        starts = np.searchsorted(first[inverse][by_item], np.sort(first))
        return cls(rows[by_item], np.append(starts, len(rows)))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def labels(self, label_ids: Integers) -> Integers:
        """Returns the label of each item's first row.

        Args:
            label_ids: Int64 array: the label of each row of the table.
        """
        return label_ids[self.rows[self.starts[:-1]]]

    def weights(self, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Returns the mean weight of each item's rows.

        Args:
            weights: Float32 array: the weight of each row of the table.
        """
        return np.add.reduceat(weights[self.rows], self.starts[:-1], dtype=np.float64) / np.diff(self.starts)

    def draw(self, position: int, epoch: int, seed: int) -> int:
        """Draws the row of an item that an epoch sees.

        Args:
            position: The item.
            epoch: Epoch, from 0.
            seed: Seed of the run.
        """
        start, end = int(self.starts[position]), int(self.starts[position + 1])
        chosen = 0
        if end - start > 1:
            first = int(self.rows[start])
            chosen = int(np.random.default_rng([seed, epoch, first, 1]).integers(end - start))
        return int(self.rows[start + chosen])
