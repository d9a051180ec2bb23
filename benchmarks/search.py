"""Exact search among vectors in memory and in files, beside one pass over the memory that holds them.

    python benchmarks/search.py
    python benchmarks/search.py --rows 200000 --rounds 3

Vectors of length 1 and 640 numbers are drawn. In each round every side is timed once, one after the other: one pass
(the sum of all numbers), the search in memory for a batch of queries, and the search in a file of each format, which
the system holds in its cache. The median of the rounds is shown, and its ratio to the pass.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from finetune.inference.nearest import find_nearest
from finetune.inference.vector_files import FORMATS, VectorFile
from finetune.inference.vectors import Facts, Piece, Space

DIMENSION = 640


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 8, 32])
    options = parser.parse_args()
    random = np.random.default_rng(0)
    vectors = np.empty((options.rows, DIMENSION), np.float32)
    for start in range(0, options.rows, 65_536):
        block = random.standard_normal(vectors[start : start + 65_536].shape, dtype=np.float32)
        vectors[start : start + 65_536] = block / np.linalg.norm(block, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, Callable[[], object]] = {"one pass over the memory": torch.from_numpy(vectors).sum}
        for count in options.queries:
            queries = random.standard_normal((count, DIMENSION))
            sides[f"in memory, {count} queries"] = partial(find_nearest, lambda: [vectors], queries, 10, None, True)
        query = random.standard_normal((1, DIMENSION))
        for kind in FORMATS:
            file = kind(Path(folder) / f"vectors{kind.suffix}")
            write(file, vectors)
            sides[f"{kind.suffix} file, 1 query"] = partial(find_nearest, file.read_vectors, query, 10, None, True)
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(options.rounds + 1):  # the first warms up
            for side, run in sides.items():
                started = time.perf_counter()
                run()
                seconds[side].append(time.perf_counter() - started)
    medians = {side: statistics.median(taken[1:]) for side, taken in seconds.items()}
    print(
        f"{options.rows:,} vectors of {DIMENSION} numbers, {torch.get_num_threads()} threads, {options.rounds} rounds\n"
    )
    print("| side | seconds | passes |\n| --- | ---: | ---: |")
    one = medians["one pass over the memory"]
    for side, median in medians.items():
        print(f"| {side} | {median:.3f} | {median / one:.1f} |")


def write(file: VectorFile, vectors: np.ndarray) -> None:
    space = Space("drawn", "0" * 64, {}, "image", "0" * 64, True, DIMENSION, "float32")

    def pieces() -> Iterator[Piece]:
        for start in range(0, len(vectors), 4096):
            part = vectors[start : start + 4096]
            names = [f"{row}.jpg" for row in range(start, start + len(part))]
            yield Piece(names, names, part)

    file.write(Facts(space, ("drawn",), len(vectors), "drawn"), pieces())


if __name__ == "__main__":
    main()
