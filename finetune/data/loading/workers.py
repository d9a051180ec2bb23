"""How many processes must read images, so that training never waits for them."""

import math
import statistics
import time
from collections.abc import Iterator

from finetune.core.cores import count_share
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.loading.loader import peek

SMALL_SHARE = 0.03
"""Share of a step that reading in the main process may take: a process more would gain no more than that."""

MARGIN = 1.25
"""What workers are given beyond the need: some images are larger than others, and cores are shared."""


def suggest_workers(data: ImageTextDataModule, step: float, at_most: float = 2.0, cores: int | None = None) -> int:
    """Times how long training batches take to read in this process, and returns how many workers they need.

    Nothing of the data module changes, and unreadable images are left to the loader to report.

    Args:
        data: The table.
        step: Seconds of a training step without loading.
        at_most: Seconds after which no further batch is read; one is read in any case.
        cores: Cores that this process may use; None asks the system.
    """
    return count_workers(time_loading(data, at_most), step, cores or count_share())


def time_loading(data: ImageTextDataModule, at_most: float = 2.0) -> float:
    """Returns the seconds that a training batch takes in this process: the median, without the first that warms up.

    Args:
        data: The table.
        at_most: As for `suggest_workers`.
    """
    return typical([*_read_batches(data, at_most)])


def typical(seconds: list[float]) -> float:
    """Returns the median, without the first one where there are others.

    Args:
        seconds: At least one number.

    Example:
        >>> typical([9.0, 1.0, 2.0]), typical([9.0])
        (1.5, 9.0)
    """
    return statistics.median(seconds[1:] or seconds)


def count_workers(loading: float, step: float, cores: int) -> int:
    """Returns the number of worker processes with which loading keeps up with training.

    None where loading costs next to nothing or there is one core. Else enough of them, but a core is left for the main
    process; a step on the CPU loses less to a worker beside it than to reading in its own process.

    Args:
        loading: Seconds that a batch takes to read in one process.
        step: Seconds of a training step without loading.
        cores: Cores that this process may use.

    Example:
        >>> [count_workers(loading, step=0.1, cores=8) for loading in (0.002, 0.02, 0.2, 2.0)]
        [0, 1, 3, 7]
    """
    if cores == 1 or loading <= SMALL_SHARE * step:
        return 0
    return min(math.ceil(MARGIN * loading / step), cores - 1) if step > 0 else cores - 1


def _read_batches(data: ImageTextDataModule, at_most: float) -> Iterator[float]:
    """Yields the seconds of each batch of the first epoch, until there is no time left."""
    batches = peek(data.train_dataloader())
    started = time.perf_counter()
    end = started + at_most
    for _ in batches:
        now = time.perf_counter()
        yield now - started
        if now > end:
            return
        started = time.perf_counter()
