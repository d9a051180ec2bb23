"""Fetches remote shards before their rows are asked for, and keeps those whose rows are being read."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Self

import numpy as np

from finetune.core.errors import RecipeError
from finetune.data.loading.shard_order import Blocks, Shards
from finetune.data.remote.places import is_remote
from finetune.data.remote.store import LIMIT, NoRoomError, open_store

_AT_ONCE = 4
"""Shards that a process fetches at the same time."""

_NEEDED = 16
"""Blocks in use that are kept even beyond the limit: rows that lie far apart may be in hundreds of shards."""

_PAUSE = 1.0
"""Seconds after which room is looked for again, as other processes may have left some."""

Keys = list[tuple[int, int]]


def require_room(shards: Shards, mixed: int) -> None:
    """Refuses to mix more shards at a time than there is room for, with those that are fetched meanwhile.

    Args:
        shards: The shards of the training rows.
        mixed: Most shards in a block.

    Raises:
        RecipeError: If the largest of them do not fit.
    """
    store, longest = open_store(), int(np.diff(shards.in_blocks(mixed, []).firsts).max())
    sizes = sorted((store.known(place).size or 0 for place in {*shards.places} if is_remote(place)), reverse=True)
    needed, room = sum(sizes[: 2 * longest]), store.room
    if needed > room:
        fewer = "Lower data.mix_shards, or raise" if longest > 1 else "Raise"
        raise RecipeError(
            f"Expected room for the shards that are mixed at a time ({longest:,}, by data.mix_shards) and as many that "
            f"are fetched meanwhile, up to {needed:,} bytes, but got {room:,} in {store.folder}. "
            f"{fewer} ${LIMIT}, or put $ALIGN_FINETUNE_CACHE on a larger disk."
        )


def fetch_ahead(batches: Iterable[Keys], blocks: Blocks, behind: int) -> Iterator[Keys]:
    """Yields batches, and has their shards fetched, with those of the block that follows.

    Args:
        batches: (position, epoch) pairs; positions in the order of the blocks.
        blocks: The shards of the rows, in the order in which they are read.
        behind: How many batches before the last one may not be read yet.
    """
    recent = deque[int](maxlen=behind + 1)
    with _Fetching(blocks) as fetching:
        for batch in batches:
            if batch:
                found = blocks.find(np.array([row for row, _ in batch]))
                recent.append(int(found.min()))
                fetching.read(recent[0], int(found.max()))
            yield batch


class _Fetching:
    """Threads that fetch shards in their order, as long as the block runs.

    A shard stays in the folder until its rows are read. One that is not asked for yet waits for room. What cannot be
    fetched is left to whoever reads it, and says why.

    Args:
        blocks: The shards.
    """

    def __init__(self, blocks: Blocks) -> None:
        self._places = [blocks.places(block) for block in range(len(blocks))]
        self._begun = (0, 0)  # the block, and its shard, that is fetched next
        self._first = self._last = -1
        self._held: dict[int, ExitStack] = {}
        self._is_over = False
        self._change = threading.Condition()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *stopped: object) -> None:
        with self._change:
            self._is_over = True
            self._release(len(self._places))
            self._change.notify_all()

    def read(self, first: int, last: int) -> None:
        """Notes which blocks are read now.

        Args:
            first: The first of them.
            last: The last of them.
        """
        with self._change:
            if self._last < 0:
                self._begun = first, 0  # after a stop, those before are done
                for _ in range(_AT_ONCE):
                    threading.Thread(target=self._fetch, daemon=True).start()  # a process that ends waits for none
            if (first, last) != (self._first, self._last):
                self._first, self._last = first, last
                self._release(first)
                self._change.notify_all()

    def _release(self, first: int) -> None:
        for block in [block for block in self._held if block < first]:
            self._held.pop(block).close()

    def _fetch(self) -> None:
        while (task := self._next()) is not None:
            block, place = task
            while not self._attempt(block, place):
                with self._change:
                    self._change.wait(_PAUSE)

    def _next(self) -> tuple[int, str] | None:
        """Waits for the next shard to fetch; None at the end."""
        with self._change:
            self._change.wait_for(lambda: self._is_over or self._begun[0] <= self._last + 1)
            block, shard = self._begun
            if self._is_over or block >= len(self._places):
                return None
            is_last = shard + 1 == len(self._places[block])
            self._begun = (block + 1, 0) if is_last else (block, shard + 1)
            return block, self._places[block][shard]

    def _attempt(self, block: int, place: str) -> bool:
        """Fetches and holds a shard; false where there is no room for it yet."""
        if self._is_over or block < self._first or not is_remote(place):
            return True
        hold = ExitStack()
        is_ahead = block > min(self._last, self._first + _NEEDED)
        try:
            hold.enter_context(open_store().open(place, is_ahead))
        except NoRoomError:
            return False
        except OSError:
            return True
        with self._change:
            if self._is_over or block < self._first:
                hold.close()
            else:
                self._held.setdefault(block, ExitStack()).push(hold)
        return True
