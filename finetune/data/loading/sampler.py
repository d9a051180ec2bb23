"""The training order as a function of seed and epoch, and a loader that knows how much of it was delivered."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

from finetune.core.types import Batch
from finetune.data.table.cells import Integers

REPEAT = 1 << 32
"""What a row's key adds to the epoch each time the row comes again: it is then augmented in another way."""


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (position, epoch) pairs in an order that seed and epoch alone decide.

    A row that comes again in an epoch does so with the epoch + `REPEAT`, the next time with the epoch + 2 `REPEAT`.

    Rows are spread over ceil(rows / batch_size) batches whose sizes differ by at most one, so that no remainder is
    dropped and no batch is too small to hold negatives.

    Args:
        length: Number of rows.
        batch_size: Largest number of rows in a batch.
        seed: Seed of the order.
        draw: Gives the rows of an epoch in their order, from seed and epoch; None takes every row once.

    Example:
        >>> batches = TrainBatches(length=5, batch_size=3, seed=0)
        >>> sorted(row for batch in batches for row, _ in batch), [len(batch) for batch in batches]
        ([0, 1, 2, 3, 4], [3, 2])
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, draw: Callable[[int, int], Integers] | None = None
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.draw = draw or self._every_row_once
        self.epoch = 0
        self.delivered = 0

    @property
    def sampler(self) -> "TrainBatches":
        """Itself: where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order the next iteration follows; another epoch starts at its first batch."""
        if epoch != self.epoch:
            self.epoch, self.delivered = epoch, 0

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yields the epoch's batches that were not delivered yet."""
        order = self.draw(self.seed, self.epoch)
        keys = np.stack([order, self.epoch + REPEAT * _count_earlier(order)], axis=1)
        for batch in np.array_split(keys, len(self))[self.delivered :]:
            yield [(row, epoch) for row, epoch in batch.tolist()]

    def _every_row_once(self, seed: int, epoch: int) -> Integers:
        return np.random.default_rng([seed, epoch]).permutation(self.length)


class InOrder(Sampler[tuple[int, int]]):
    """The keys of all rows as they stand, made one by one.

    A list of them would not stay shared with the workers: counting its references writes to its pages.

    Args:
        length: Number of rows.

    Example:
        >>> list(InOrder(2))
        [(0, 0), (1, 0)]
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((position, 0) for position in range(self.length))


def _count_earlier(order: Integers) -> Integers:
    """How often each row came before in the order."""
    by_row = np.argsort(order, kind="stable")
    rows = order[by_row]
    earlier = np.empty(len(order), dtype=np.int64)
    earlier[by_row] = np.arange(len(order)) - np.searchsorted(rows, rows)
    return earlier


class TrainLoader(DataLoader[Batch]):
    """A `DataLoader` over `TrainBatches` whose state is the number of batches handed to the training loop.

    Lightning saves and restores that state with its checkpoints. The count is of delivered batches, not of those
    that workers have prepared, and starts anew with each epoch.
    """

    batch_sampler: TrainBatches

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yields batches, each counted as delivered when it is handed over."""
        for batch in super().__iter__():
            self.batch_sampler.delivered = (self.batch_sampler.delivered + 1) % len(self.batch_sampler)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The current epoch and the number of its batches that were delivered."""
        return {"epoch": self.batch_sampler.epoch, "delivered": self.batch_sampler.delivered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues after the batches that were delivered when the state was saved."""
        self.batch_sampler.epoch = state["epoch"]
        self.batch_sampler.delivered = state["delivered"]
