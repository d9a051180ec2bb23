"""Every image of a table opened and decoded, in several processes."""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from finetune.data.checks.unreadable import Unreadable, image_fault
from finetune.data.prepare.images import try_image
from finetune.data.table.faults import Fault
from finetune.data.table.rows import Rows

CHUNK = 16  # images handed to a process at a time


class Decoded(NamedTuple):
    """What decoding found.

    Attributes:
        faults: A fault for each row whose image cannot be read.
        sizes: Int64 array of shape (N, 2): width and height of each row's image, 0 where it cannot be read.
    """

    faults: tuple[Fault, ...]
    sizes: npt.NDArray[np.int64]


def decode_images(rows: Rows, column: str, processes: int | None = None) -> Decoded:
    """Opens every image of a table, each file once, with a progress bar.

    Args:
        rows: The table.
        column: The column of the image paths, for the faults.
        processes: How many processes decode; None for one on each core.
    """
    from tqdm import tqdm

    paths, ids = np.unique(rows.images, return_inverse=True)
    chunks = [paths[start : start + CHUNK].tolist() for start in range(0, len(paths), CHUNK)]
    sizes, reasons = np.zeros((len(paths), 2), dtype=np.int64), {}
    # Started afresh: a fork would copy the threads' locks of whatever library runs some.
    context = multiprocessing.get_context("spawn")
    workers = min(processes or os.cpu_count() or 1, len(chunks))
    with ProcessPoolExecutor(workers, mp_context=context) as pool, tqdm(total=len(paths), unit=" images") as bar:
        done = 0
        for answers in pool.map(_decode, chunks):
            for size, reason in answers:
                sizes[done] = size
                if reason:
                    reasons[done] = reason
                done += 1
            bar.update(len(answers))
    return Decoded(tuple(_faults(rows, column, ids, reasons)), sizes[ids])


def _decode(paths: list[str]) -> list[tuple[tuple[int, int], str]]:
    """Width, height, and why it cannot be read, of each image."""
    found = map(try_image, paths)
    return [((0, 0), image) if isinstance(image, str) else (image.size, "") for image in found]


def _faults(rows: Rows, column: str, ids: npt.NDArray[np.int64], reasons: dict[int, str]) -> Iterator[Fault]:
    told = set()
    for row in np.flatnonzero(np.isin(ids, list(reasons))).tolist():
        fault = image_fault(rows, Unreadable(row, reasons[int(ids[row])]), column)
        if (fault.file, fault.row) not in told:
            told.add((fault.file, fault.row))
            yield fault
