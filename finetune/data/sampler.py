"""The training order as a function of seed and epoch, and a loader that knows how much of it was delivered."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

from finetune.batch import Batch


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (position, epoch) pairs in an order that seed and epoch alone decide.

    Every row comes once an epoch: rows are spread over ceil(rows / batch_size) batches whose sizes differ by at
    most one, so that no remainder is dropped and no batch is too small to hold negatives.

    Args:
        length: Number of rows.
        batch_size: Largest number of rows in a batch.
        seed: Seed of the order.

    Example:
        >>> batches = TrainBatches(length=5, batch_size=3, seed=0)
        >>> sorted(row for batch in batches for row, _ in batch), [len(batch) for batch in batches]
        ([0, 1, 2, 3, 4], [3, 2])
    """

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
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
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        for rows in np.array_split(order, len(self))[self.delivered :]:
            yield [(int(row), self.epoch) for row in rows]


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
