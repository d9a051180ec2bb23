"""An order of training that reads each remote shard once an epoch: the rows of a block of shards are mixed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from finetune.data.loading.choices import RowChoices
from finetune.data.loading.permutation import KeyedPermutation
from finetune.data.table.cells import Integers
from finetune.data.table.stored import release_pages

_CHUNK = 1 << 20


@dataclass(frozen=True, eq=False)
class Shards:
    """The shards of a loader's rows, which lie one after the other.

    Attributes:
        places: Path or URL of each shard.
        starts: Int64 array of shape (shards + 1,): the position at which each shard's rows start, and the end.
    """

    places: tuple[str, ...]
    starts: Integers

    @classmethod
    def of_rows(cls, files: Sequence[str], file_ids: npt.NDArray[np.integer], choices: RowChoices) -> Self:
        """Finds where one shard ends and the next begins. Of several rows of an item, the first says where it lies.

        Args:
            files: The table's files.
            file_ids: Integer array of shape (rows of the table,): the position in `files` of each row's file.
            choices: The loader's rows, at least one.
        """
        starts, places, last = list[int](), list[str](), -1
        for start in range(0, len(choices), _CHUNK):  # of mapped columns, little at a time
            found = file_ids[choices.firsts(start, start + _CHUNK)]
            begun = np.flatnonzero(np.diff(found, prepend=last))
            starts += (start + begun).tolist()
            places += [files[number] for number in found[begun].tolist()]
            last = int(found[-1])
            release_pages()
        return cls(tuple(places), np.array([*starts, len(choices)], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.places)

    def in_order(self) -> "Blocks":
        """The shards as they stand, each a block."""
        return Blocks(self, np.arange(len(self)), np.arange(len(self) + 1))

    def in_blocks(self, mixed: int, key: list[int]) -> "Blocks":
        """The shards in an order that a key decides, in blocks of equal numbers of them, to within one.

        Args:
            mixed: Most shards in a block.
            key: Numbers of at least 0, such as seed and epoch.
        """
        count = -(-len(self) // mixed)
        order = KeyedPermutation(len(self), key)[np.arange(len(self))]
        return Blocks(self, order, np.arange(count + 1) * len(self) // count)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Shards that are read at the same time, block after block.

    Attributes:
        shards: The shards.
        order: Int64 array of shape (shards,): the shards in the order in which they are read.
        firsts: Int64 array of shape (blocks + 1,): where each block starts in `order`, and the end.
    """

    shards: Shards
    order: Integers
    firsts: Integers

    def __len__(self) -> int:
        return len(self.firsts) - 1

    def find(self, rows: Integers) -> Integers:
        """Returns the block of each row.

        Args:
            rows: Int64 array of any shape: positions of rows.
        """
        return self._block_of[np.searchsorted(self.shards.starts, rows, side="right") - 1]

    @cached_property
    def _block_of(self) -> Integers:
        """The block of each shard."""
        found = np.empty_like(self.order)
        found[self.order] = np.repeat(np.arange(len(self)), np.diff(self.firsts))
        return found

    def places(self, block: int) -> list[str]:
        """Returns the paths or URLs of a block's shards.

        Args:
            block: Its number, from 0.
        """
        return [self.shards.places[shard] for shard in self.order[self.firsts[block] : self.firsts[block + 1]]]

    def arrange(self, rows: Integers) -> Integers:
        """Puts rows that were drawn otherwise into the order of their blocks; within each they stay as they come.

        Args:
            rows: Int64 array of shape (N,): positions of rows, some of them several times or not at all.
        """
        return rows[np.argsort(self.find(rows), kind="stable")]


class BlockPermutation:
    """A permutation in which the rows of a block are mixed and blocks follow each other, in memory for shards alone.

    Rows of a block come in an order of `KeyedPermutation`.

    Args:
        blocks: The shards in their order.
        key: Numbers of at least 0, such as seed and epoch.

    Example:
        >>> shards = Shards(("a.tar", "b.tar", "c.tar"), np.array([0, 2, 4, 6]))
        >>> order = BlockPermutation(shards.in_blocks(1, [0, 0]), [0, 0])[np.arange(6)]
        >>> np.sort(order.reshape(3, 2)).tolist()
        [[2, 3], [4, 5], [0, 1]]
    """

    def __init__(self, blocks: Blocks, key: list[int]) -> None:
        self._blocks = blocks
        self._key = key
        self._ends = np.append(0, np.cumsum(np.diff(blocks.shards.starts)[blocks.order]))
        """Where each shard begins if all rows stand in the shards' order, and the end."""

    def __getitem__(self, positions: Integers) -> Integers:
        """Returns what stands at some positions.

        Args:
            positions: Int64 array of any shape, from 0 to N - 1.

        Returns:
            Int64 array of the same shape.
        """
        bounds = self._ends[self._blocks.firsts]
        blocks = np.searchsorted(bounds, positions, side="right") - 1
        mixed = np.empty_like(positions)
        for block in np.unique(blocks).tolist():
            inside, start = blocks == block, bounds[block]
            order = KeyedPermutation(int(bounds[block + 1] - start), [*self._key, 1 + block])
            mixed[inside] = start + order[positions[inside] - start]
        place = np.searchsorted(self._ends, mixed, side="right") - 1
        found: Integers = self._blocks.shards.starts[self._blocks.order[place]] + mixed - self._ends[place]
        return found
