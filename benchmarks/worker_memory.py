"""Memory that a worker process of the data module needs for itself, for a large table.

    python benchmarks/worker_memory.py --rows 1000000

Writes a Parquet table of captions whose rows all name one image file, starts the training loader as a recipe does, with
two workers, and reads batches. Then counts the memory that each worker shares with no other process (Private_Clean and
Private_Dirty of /proc/PID/smaps_rollup), and subtracts what a table of 1,000 rows needs. The evaluation loader is
measured in the same way. Each measurement is a process of its own.
"""

import argparse
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SMALL = 1_000


def write_table(folder: Path, rows: int) -> None:
    """Writes a table of different captions, half of the rows for training and half for the test."""
    captions = [f"A photograph of the thing that has the number {row}, as sold in shops" for row in range(rows)]
    splits = ["train", "test"] * (rows // 2)
    table = pa.table({"image": ["image.png"] * rows, "caption": captions, "split": splits})
    pq.write_table(table, folder / f"{rows}.parquet")


def private_memory(process: int) -> float:
    """Reads the MiB of a process that no other shares."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    return sum(int(size) for size in re.findall(r"^Private_(?:Clean|Dirty): +(\d+) kB", text, re.MULTILINE)) / 1024


def measure(table: str, split: str, batches: int) -> list[float]:
    """Measures the MiB of each worker after a number of batches."""
    from finetune import ImageTextDataModule, Table

    data = ImageTextDataModule(
        Table(table, caption="caption", split="split"), "align-mini", image_size=32, batch_size=64, num_workers=2
    )
    loader = data.train_dataloader() if split == "train" else data.loader(split)
    stream = chain.from_iterable(repeat(loader))  # kept, as the workers end with it
    for _ in islice(stream, batches):
        pass
    return [private_memory(worker.pid) for worker in multiprocessing.active_children() if worker.pid]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the large table (%(default)s)")
    parser.add_argument("--batches", type=int, default=200, help="batches read before measuring (%(default)s)")
    parser.add_argument("--measure", nargs=2, metavar=("TABLE", "SPLIT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure, options.batches)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generator = np.random.default_rng(0)
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / "image.png")
        for rows in (SMALL, options.rows):
            write_table(folder, rows)
        for split in ("train", "test"):
            found = []
            for rows in (SMALL, options.rows):
                words = ["--batches", str(options.batches), "--measure", str(folder / f"{rows}.parquet"), split]
                done = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
                found.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{split} loader, {options.batches} batches, MiB of each worker's own")
            for rows, sizes in zip((SMALL, options.rows), found, strict=True):
                print(f"  {rows:>12,} rows  {'  '.join(f'{size:7.1f}' for size in sizes)}")
            more = [large - small for small, large in zip(*map(sorted, found), strict=True)]
            print(f"  {'more':>17}  {'  '.join(f'{size:7.1f}' for size in more)}")


if __name__ == "__main__":
    main()
