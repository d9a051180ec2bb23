"""Work that threads do ahead of whoever needs its results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Found = TypeVar("Found")


def work_ahead(
    work: Callable[[Given], Found], items: Iterable[Given], threads: int, most_ahead: int
) -> Iterator[Found]:
    """Yields what a function makes of items, in their order. An error comes in its item's place.

    The function has to let other threads run for most of its time, as decoding and resizing an image do.

    Args:
        work: The function.
        items: What it is called with; they are gone through as results are asked for.
        threads: How many items are worked on at a time.
        most_ahead: Largest number of items that are begun before their result is asked for.

    Example:
        >>> list(work_ahead(str, range(4), threads=2, most_ahead=3))
        ['0', '1', '2', '3']
    """
    pool, begun = ThreadPoolExecutor(threads), deque[Future[Found]]()
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) > most_ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
