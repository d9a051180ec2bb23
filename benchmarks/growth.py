"""How time and memory grow with rows, batch, caption length and classes: exponents, beside those expected.

    python benchmarks/growth.py
    python benchmarks/growth.py --only rows --match retrieval

Each series of `growth_series.py` is a process of its own, in which the sizes follow each other. Time is CPU time of all
threads, the median of up to three repetitions, and memory the largest that the process held during the work above what
it held before. The exponent is the slope of a line through the logarithms, over the sizes of the upper half: below,
what is constant counts. An exponent more than 0.2 above the one expected is marked.
"""

import argparse
import ctypes
import gc
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from growth_series import SERIES, Series
from growth_tables import Work
from memory_watch import MemoryWatch, resident_bytes

REPEATS = 3
LONG = 2.0
"""Seconds of CPU time after which a size is not repeated."""

LEAST_BYTES = 2**20
LEAST_SECONDS = 1e-3
"""What is less than these is too little to fit a line through."""

SLACK = 0.2


def measure_work(work: Work) -> tuple[float, int]:
    """Measures CPU seconds and bytes of some work."""
    give_back()
    before = resident_bytes()
    with MemoryWatch(0.005) as watch:
        seconds = [time_work(work)]
    while len(seconds) < REPEATS and seconds[0] < LONG:
        seconds.append(time_work(work))
    return statistics.median(seconds), max(0, watch.peak - before)


def time_work(work: Work) -> float:
    """CPU seconds of all threads; what takes less than a millisecond is done a hundred times."""
    start = time.process_time()
    work()
    seconds = time.process_time() - start
    if seconds >= LEAST_SECONDS:
        return seconds
    start = time.process_time()
    for _ in range(100):
        work()
    return (time.process_time() - start) / 100


def give_back() -> None:
    """Returns memory that is not used to the system, so that it counts again when it is used."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def measure_series(number: int, folder: Path) -> list[tuple[float, int]]:
    """Measures all sizes of a series in this process.

    Args:
        number: Its position in `SERIES`.
        folder: Where tables are written, and found by the series that follow.
    """
    series = SERIES[number]
    series.prepare(series.sizes[0], folder)()  # what is imported or read at the first call
    return [measure_work(series.prepare(size, folder)) for size in series.sizes]


def fit_exponent(sizes: Sequence[int], values: Sequence[float], least: float) -> float:
    """The slope of a line through the logarithms of the upper half, NaN where fewer than two values are large enough.

    Args:
        sizes: In ascending order.
        values: What was measured at each.
        least: Smallest value that counts.

    Example:
        >>> round(fit_exponent([1, 10, 100, 1000], [5.0, 5.0, 500.0, 50000.0], 1.0), 3)
        2.0
    """
    half = len(sizes) // 2
    kept = [(math.log(n), math.log(v)) for n, v in zip(sizes[half:], values[half:], strict=True) if v >= least]
    if len(kept) < 2:
        return math.nan
    return float(np.polyfit(*zip(*kept, strict=True), deg=1)[0])


def describe(series: Series, found: Sequence[tuple[float, int]]) -> str:
    """Writes the line of a series."""
    seconds, memory = zip(*found, strict=True)
    exponents = fit_exponent(series.sizes, seconds, LEAST_SECONDS), fit_exponent(series.sizes, memory, LEAST_BYTES)
    shown = [
        "-" if math.isnan(value) else f"{value:.2f}{' **more**' if value > expected + SLACK else ''}"
        for value, expected in zip(exponents, (series.time, series.memory), strict=True)
    ]
    sizes = f"{series.sizes[0]:,} to {series.sizes[-1]:,}"
    cells = [series.name, f"{sizes} {series.unit}", f"{seconds[-1]:.3g}", f"{series.time:g}", shown[0]]
    return f"| {' | '.join([*cells, f'{memory[-1] / 2**20:,.0f}', f'{series.memory:g}', shown[1]])} |"


def in_fresh_process(number: int, folder: Path) -> list[tuple[float, int]]:
    """Measures a series in a process that does nothing else; forked where that can be, as imports take long."""
    with multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn").Pool(1) as pool:
        return pool.apply(measure_series, (number, folder))


def main() -> None:
    units = list(dict.fromkeys(series.unit for series in SERIES))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=units, default=units, help="what grows (all)")
    parser.add_argument("--match", default="", help="part of the names of the series to measure")
    options = parser.parse_args()
    print("| what | sizes | CPU s | expected | exponent | MiB | expected | exponent |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    started = time.perf_counter()
    chosen = [n for n, series in enumerate(SERIES) if series.unit in options.only and options.match in series.name]
    with tempfile.TemporaryDirectory() as folder:
        for number in chosen:
            found = in_fresh_process(number, Path(folder))
            print(describe(SERIES[number], found), flush=True)
            pairs = zip(SERIES[number].sizes, found, strict=True)
            words = [f"{size:,}: {seconds:.3g} s {memory / 2**20:,.0f} MiB" for size, (seconds, memory) in pairs]
            print("  " + ", ".join(words), file=sys.stderr, flush=True)
    print(f"\n{time.perf_counter() - started:.0f} s in all", file=sys.stderr)


if __name__ == "__main__":
    main()
