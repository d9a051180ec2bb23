"""Orders rows: training rows as seed and epoch decide, evaluation rows as they stand."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from finetune.data.loading.fetch_ahead import Keys, fetch_ahead
from finetune.data.loading.permutation import KeyedPermutation
from finetune.data.loading.shard_order import BlockPermutation, Blocks, Shards
from finetune.data.table.cells import Integers

_Order = KeyedPermutation | BlockPermutation | Integers

REPEAT = 1 << 32
"""A row's key adds this to the epoch each time the row comes again, so that it is augmented differently."""


@dataclass(frozen=True)
class Part:
    """Which part of each batch a process takes: as many rows as each of the others, or one more.

    Attributes:
        number: The process's, from 0.
        count: How many processes share the batch.
    """

    number: int
    count: int

    def of(self, start: int, stop: int) -> tuple[int, int]:
        """Returns where the part of a batch starts and stops.

        Args:
            start: Where the batch starts.
            stop: Where it stops.

        Example:
            >>> [Part(number, 3).of(10, 17) for number in range(3)]
            [(10, 12), (12, 14), (14, 17)]
        """
        length = stop - start
        return start + length * self.number // self.count, start + length * (self.number + 1) // self.count


WHOLE = Part(0, 1)


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (position, epoch) pairs in an order that only seed and epoch decide.

    A row that comes again in an epoch carries the epoch + `REPEAT`, the next time the epoch + 2 `REPEAT`.

    Rows are spread over ceil(rows / batch_size) batches whose sizes differ by at most one, so no remainder is dropped
    and no batch is too small to hold negatives.

    Args:
        length: Number of rows.
        batch_size: Largest number of rows in a batch.
        seed: Seed of the order.
        draw: Returns the rows of an epoch in their order, given seed and epoch; None takes every row once, in an order
            that is never held in memory as a whole.
        part: Which part of each batch is yielded.
        shards: The rows' shards, if they are remote: the rows of a block of them are mixed, and the next block is
            fetched meanwhile.
        mixed: Most shards in a block.
        behind: How many batches that were yielded before may not be read yet.

    Example:
        >>> batches = TrainBatches(length=5, batch_size=3, seed=0)
        >>> sorted(row for batch in batches for row, _ in batch), [len(batch) for batch in batches]
        ([0, 1, 2, 3, 4], [3, 2])
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        draw: Callable[[int, int], Integers] | None = None,
        part: Part = WHOLE,
        shards: Shards | None = None,
        mixed: int = 1,
        behind: int = 0,
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.draw = draw
        self.part = part
        self.shards = shards
        self.mixed = mixed
        self.behind = behind
        self.epoch = 0
        self.delivered = 0

    @property
    def sampler(self) -> "TrainBatches":
        """The object whose `set_epoch` Lightning calls: this one."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the next iteration follows; a new epoch starts at its first batch."""
        if epoch != self.epoch:
            self.epoch, self.delivered = epoch, 0

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[Keys]:
        """Yields the batches of the epoch that were not delivered yet."""
        if self.shards is None:
            return self._read_order(None)
        blocks = self.shards.in_blocks(self.mixed, [self.seed, self.epoch])
        return fetch_ahead(self._read_order(blocks), blocks, self.behind)

    def _read_order(self, blocks: Blocks | None) -> Iterator[Keys]:
        order, repeats = self._open_epoch(blocks)
        for number in range(self.delivered, len(self)):
            positions = np.arange(*self.part.of(self._start(number), self._start(number + 1)))
            epochs = np.full(len(positions), self.epoch) if repeats is None else self.epoch + repeats[positions]
            yield [*zip(order[positions].tolist(), epochs.tolist(), strict=True)]

    def _open_epoch(self, blocks: Blocks | None) -> tuple[_Order, Integers | None]:
        """The rows in their order, and what is added to the epoch of those that came before; None where none has."""
        key = [self.seed, self.epoch]
        if self.draw is None:
            return KeyedPermutation(self.length, key) if blocks is None else BlockPermutation(blocks, key), None
        order = self.draw(self.seed, self.epoch)
        if blocks is not None:
            order = blocks.arrange(order)
        return order, REPEAT * _count_earlier(order)

    def _start(self, number: int) -> int:
        """The position in the epoch's order at which a batch starts."""
        size, larger = divmod(self.length, len(self))
        return number * size + min(number, larger)


class InOrder(Sampler[list[tuple[int, int]]]):
    """Batches of the keys of all rows as they stand, made one by one.

    Workers could not share a list of keys: counting its references writes to its pages, which copies them.

    Args:
        length: Number of rows.
        batch_size: Number of rows in a batch; the last one may have less.
        part: Which part of each batch is yielded, of no rows where the batch has too few.
        shards: The rows' shards, if they are remote: the next is fetched while one is read.
        behind: How many batches that were yielded before may not be read yet.

    Example:
        >>> list(InOrder(3, batch_size=2))
        [[(0, 0), (1, 0)], [(2, 0)]]
    """

    def __init__(
        self, length: int, batch_size: int, part: Part = WHOLE, shards: Shards | None = None, behind: int = 0
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.part = part
        self.shards = shards
        self.behind = behind

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[Keys]:
        batches = self._read_order()
        return batches if self.shards is None else fetch_ahead(batches, self.shards.in_order(), self.behind)

    def _read_order(self) -> Iterator[Keys]:
        for start in range(0, self.length, self.batch_size):
            rows = range(*self.part.of(start, min(start + self.batch_size, self.length)))
            yield [(position, 0) for position in rows]


def _count_earlier(order: Integers) -> Integers:
    """Counts how often each row came earlier in the order."""
    by_row = np.argsort(order, kind="stable")
    rows = order[by_row]
    earlier = np.empty(len(order), dtype=np.int64)
    earlier[by_row] = np.arange(len(order)) - np.searchsorted(rows, rows)
    return earlier
