"""Memory of training and worker processes, and the time from a start to the first batch, as a table grows.

    python benchmarks/table_memory.py --rows 10000 1000000 10000000

Writes CSV tables of captions whose rows take turns in a thousand image files, each row an image of its own by its id.
For each of them the data module is started as `finetune fit` does: rows, checks, loader, and the first batch. The first
start reads the CSV and keeps the rows in a file; the starts after it open that file. Each start is a process. Of first
starts, a line through the two largest tables gives what 10 and 100 million rows would take.

A first start's peak is what its process had written (RssAnon) at most, sampled every 20 ms, and `with files` counts
mapped pages too (VmHWM). The rest is memory of a second start, after `--batches` batches: of the main process and of
the worker that holds most. `own` is what a process has written, which nobody can take from it. `share` counts mapped
files too, each page divided by the processes that hold it (Pss), though the system takes back such pages whenever it
needs them.
"""

import argparse
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
from growth_tables import IMAGES, WORDS
from memory_watch import MemoryWatch
from PIL import Image

CHUNK = 100_000
MIB = 2**20


def write_table(folder: Path, rows: int) -> Path:
    """Writes a CSV with ids and captions, all different, and the images that its rows take turns in."""
    path = folder / f"{rows}.csv"
    if path.exists():
        return path
    if not (folder / "images" / "0.png").exists():
        (folder / "images").mkdir(exist_ok=True)
        for number in range(IMAGES):
            Image.new("RGB", (32, 32), (number % 256, number // 256, 0)).save(folder / "images" / f"{number}.png")
    generator = np.random.default_rng(0)
    with path.open("w") as file:
        file.write("image,id,caption\n")
        for start in range(0, rows, CHUNK):
            words = generator.choice(WORDS, (min(CHUNK, rows - start), 8)).tolist()
            file.writelines(
                f"{row % IMAGES}.png,{row},a photo of {' '.join(line)} number {row}\n"
                for row, line in enumerate(words, start)
            )
    return path


def memory_of(process: int, names: tuple[str, ...] = ("own", "share")) -> dict[str, float]:
    """Reads what a process has written, and its share of all it holds, in MiB."""
    found = {}
    for name in names:
        file, field = {"own": ("status", "RssAnon"), "share": ("smaps_rollup", "Pss")}[name]
        line = re.search(rf"^{field}:\s+(\d+)", Path(f"/proc/{process}/{file}").read_text(), re.MULTILINE)
        assert line is not None
        found[name] = int(line[1]) / 1024
    return found


def start(table: str, workers: int, batches: int, method: str | None) -> dict[str, Any]:
    """Starts the data module and reads batches; seconds of each part, and memory at the end."""
    from finetune import ImageTextDataModule, Table
    from finetune.model.base import Base

    if method is not None:
        multiprocessing.set_start_method(method, force=True)
    base = Base.open("align-mini")
    base.processor(32)  # imports
    watch = MemoryWatch(0.02, _read_own)
    settings = Table(table, caption="caption", image_id="id", images=str(Path(table).parent / "images"))
    parts, started, busy = {}, time.perf_counter(), time.process_time()
    data = ImageTextDataModule(settings, base, image_size=32, num_workers=workers)
    data.rows.require("train", "test")
    parts["rows"] = time.perf_counter() - started
    data.find_concerns()
    parts["checks"] = time.perf_counter() - started - parts["rows"]
    stream = chain.from_iterable(repeat(data.train_dataloader()))
    next(stream)
    parts["all"] = time.perf_counter() - started
    parts["cpu"] = time.process_time() - busy
    for _ in islice(stream, batches - 1):
        pass
    watch.stop()
    found = [memory_of(child.pid) for child in multiprocessing.active_children() if child.pid]
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    worst = {name: max((one[name] for one in found), default=0.0) for name in ("own", "share")}
    assert peak is not None
    peaks = {"own": watch.peak / MIB, "with files": int(peak[1]) / 1024}
    return {"seconds": parts, "main": memory_of(os.getpid()), "worker": worst, "peak": peaks}


def _read_own() -> int:
    return round(memory_of(os.getpid(), ("own",))["own"] * MIB)


def start_process(table: Path, options: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """Starts in a process of its own, with a cache of its own for tables."""
    words = ["--workers", str(options.workers), "--batches", str(options.batches), "--start", str(table)]
    words += [] if options.method is None else ["--method", options.method]
    environment = {**os.environ, "ALIGN_FINETUNE_CACHE": str(cache)}
    done = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(table.name, json.dumps(found), file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = [10_000, 1_000_000, 10_000_000]
    parser.add_argument("--rows", type=int, nargs="+", default=sizes, help="rows of the tables, the smallest first")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images (%(default)s)")
    parser.add_argument("--batches", type=int, default=200, help="batches read before measuring (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="second starts of each table (%(default)s)")
    parser.add_argument("--method", choices=["fork", "spawn"], help="how workers start; the system's own way")
    parser.add_argument("--folder", type=Path, help="where tables and cache are kept; a temporary folder")
    parser.add_argument("--start", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        print(json.dumps(start(options.start, options.workers, options.batches, options.method)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        cache = folder / "cache"
        tables = [write_table(folder, rows) for rows in options.rows]
        first = [start_process(table, options, cache) for table in tables]
        rounds = [[start_process(table, options, cache) for table in tables] for _ in range(options.repeats)]
    print(
        "| rows | first start, s | processor, s | peak, own MiB | with files | second start, s | main own, MiB | share "
        "| worker own | share |\n" + "| ---: " * 10 + "|"
    )
    least = [_median(rounds, 0, *keys) for keys in KEYS]
    seconds, busy, own, whole = ([float(one[kind][name]) for one in first] for kind, name in FIRST)
    for at, rows in enumerate(options.rows):
        more = [_median(rounds, at, *keys) - base for keys, base in zip(KEYS, least, strict=True)]
        cells = [f"{rows:,}", f"{seconds[at]:.1f}", f"{busy[at]:.1f}", f"{own[at] - own[0]:+,.0f}"]
        cells += [f"{whole[at] - whole[0]:+,.0f}", f"{_median(rounds, at, 'seconds', 'all'):.2f}"]
        print(f"| {' | '.join([*cells, *(f'{value:+,.0f}' for value in more)])} |")
    print(f"\nMemory is above that of the table of {options.rows[0]:,} rows.")
    if len(first) > 1:
        for rows in (10_000_000, 100_000_000):
            time_, memory = (extrapolate(options.rows, values, rows) for values in (busy, own))
            print(f"{rows:,} rows would take {time_:,.0f} s of a processor and {memory - own[0]:,.0f} MiB.")


def extrapolate(rows: list[int], values: list[float], to: int) -> float:
    """Goes on along the line through the last two values.

    Args:
        rows: Where the values were measured.
        values: The values.
        to: Where the line ends.
    """
    slope = (values[-1] - values[-2]) / (rows[-1] - rows[-2])
    return float(values[-1] + (to - rows[-1]) * slope)


FIRST = (("seconds", "all"), ("seconds", "cpu"), ("peak", "own"), ("peak", "with files"))
KEYS = (("main", "own"), ("main", "share"), ("worker", "own"), ("worker", "share"))


def _median(rounds: list[list[dict[str, Any]]], at: int, *keys: str) -> float:
    return statistics.median(one[at][keys[0]][keys[1]] for one in rounds)


if __name__ == "__main__":
    main()
