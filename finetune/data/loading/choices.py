"""Chooses rows of the same image: evaluation sees each of them, training draws one each epoch."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from finetune.data.table.cells import Integers
from finetune.data.table.order import group_items


@dataclass(frozen=True, eq=False)
class RowChoices:
    """Items of one or more rows each.

    Attributes:
        rows: Int64 array of shape (N,): positions in the table, item by item.
        starts: Int64 array of shape (items,): where each item begins in `rows`; None where each is a single row.
    """

    rows: Integers
    starts: Integers | None = None

    @classmethod
    def of_each(cls, rows: Integers) -> Self:
        """Makes every row an item of its own.

        Args:
            rows: Positions in the table.
        """
        return cls(rows)

    @classmethod
    def of_items(cls, rows: Integers, items: Integers) -> Self:
        """Groups rows with equal numbers into items, in the order of their first rows.

        Args:
            rows: Positions in the table, ascending.
            items: Int64 array of shape (N,): the number of each of these rows.
        """
        return cls(*group_items(rows, items))

    def __len__(self) -> int:
        return len(self.rows if self.starts is None else self.starts)

    def firsts(self, start: int = 0, stop: int | None = None) -> Integers:
        """Returns the position in the table of each item's first row.

        Args:
            start: The first item.
            stop: The item after the last; None for the end.
        """
        return self.rows[start:stop] if self.starts is None else self.rows[self.starts[start:stop]]

    def labels(self, label_ids: Integers) -> Integers:
        """Returns the label of each item's first row.

        Args:
            label_ids: Int64 array: the label of each row of the table.
        """
        return label_ids[self.firsts()]

    def weights(self, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Returns the mean weight of each item's rows.

        Args:
            weights: Float32 array: the weight of each row of the table.
        """
        if self.starts is None:
            return weights[self.rows].astype(np.float64)
        lengths = np.diff(self.starts, append=len(self.rows))
        return np.add.reduceat(weights[self.rows], self.starts, dtype=np.float64) / lengths

    def draw(self, position: int, epoch: int, seed: int) -> int:
        """Draws the row of an item that an epoch sees.

        Args:
            position: The item.
            epoch: Epoch, from 0.
            seed: Seed of the run.
        """
        if self.starts is None:
            return int(self.rows[position])
        start = int(self.starts[position])
        end = int(self.starts[position + 1]) if position + 1 < len(self.starts) else len(self.rows)
        chosen = 0
        if end - start > 1:
            first = int(self.rows[start])
            chosen = int(np.random.default_rng([seed, epoch, first, 1]).integers(end - start))
        return int(self.rows[start + chosen])
