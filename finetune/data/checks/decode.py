"""Opens and decodes every image of a table, many of them in several processes."""

import multiprocessing
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from finetune.core.bar import Bar
from finetune.core.cores import count_cores
from finetune.data.checks.unreadable import Unreadable, image_fault
from finetune.data.prepare.images import try_image
from finetune.data.table.cells import find_distinct
from finetune.data.table.faults import Fault
from finetune.data.table.rows import Rows

CHUNK = 16
"""Images that a process gets at a time."""

ALONE = 2.0
"""Seconds for which this process decodes images alone: starting others takes about as long."""


class Decoded(NamedTuple):
    """The images of a table.

    Attributes:
        faults: A fault for each row whose image cannot be read.
        sizes: Int64 array of shape (N, 2): width and height of each row's image, 0 where it cannot be read.
    """

    faults: tuple[Fault, ...]
    sizes: npt.NDArray[np.int64]


def decode_images(rows: Rows, column: str, processes: int | None = None, alone: float = ALONE) -> Decoded:
    """Opens every image of a table, each file once, with a progress bar.

    Args:
        rows: The table.
        column: The column of the image paths, for the faults.
        processes: Number of processes that help; None for one on each core.
        alone: Seconds after which they are started, if there are images left.
    """
    paths, _, ids = find_distinct(rows.images)
    decoded = _decode_all(paths.tolist(), processes or count_cores(), alone)
    found = []
    with Bar("decoding", len(paths), "images") as bar:
        for one in decoded:
            found.append(one)
            bar.advance(1, 1)
    sizes = np.array([size for size, _ in found], dtype=np.int64)
    unreadable = np.flatnonzero([bool(reason) for _, reason in found])
    faults = (
        image_fault(rows, Unreadable(row, found[ids[row]][1]), column)
        for row in np.flatnonzero(np.isin(ids, unreadable)).tolist()
    )
    return Decoded(tuple(dict.fromkeys(faults)), sizes[ids])


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Lets processes that start inside not get the Ctrl-C that a terminal sends to all: the main process ends them."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _decode_all(paths: list[str], processes: int, alone: float) -> Iterator[tuple[tuple[int, int], str]]:
    end, done = time.monotonic() + alone, 0
    while done < len(paths) and time.monotonic() < end:
        yield _decode(paths[done])
        done += 1
    if done < len(paths):
        workers = min(processes, -(-(len(paths) - done) // CHUNK))
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that other libraries' threads hold
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            with _deaf_to_ctrl_c():
                decoded = pool.map(_decode, paths[done:], chunksize=CHUNK)
            yield from decoded


def _decode(path: str) -> tuple[tuple[int, int], str]:
    """Returns width, height, and why the image cannot be read."""
    image = try_image(path)
    return ((0, 0), image) if isinstance(image, str) else (image.size, "")
