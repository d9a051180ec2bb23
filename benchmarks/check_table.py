"""Times `finetune check` on a generated table, as a command from start to end.

    python benchmarks/check_table.py --rows 100000 --repeats 5

The table is a CSV with a caption and a label for each row, and each row has an image file of its own, as small as
files get. Times are those of whole processes, including the start of Python and all imports.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

RECIPE = """
model: {{checkpoint: align-mini}}
data:
  table:
    path: photos.csv
    {column}: {column}
"""
WORDS = ("red", "old", "small", "wooden", "bicycle", "house", "river", "cup", "dog", "street", "under", "beside")


def write_table(folder: Path, rows: int) -> None:
    """Writes photos.csv and its images: PNGs of 2 x 2 pixels, all of different colours, 1,000 in each folder."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (rows, 2, 2, 3), dtype=np.uint8)
    words = generator.choice(WORDS, (rows, 12))
    lines = ["image,caption,label"]
    for row in range(rows):
        image = f"{row // 1000:04d}/{row:08d}.png"
        if row % 1000 == 0:
            (folder / image).parent.mkdir()
        Image.fromarray(pixels[row]).save(folder / image, compress_level=0)
        lines.append(f"{image},a photo of {' '.join(words[row])} number {row},class {row % 100}")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")


def time_check(folder: Path, column: str) -> tuple[float, float, float]:
    """Times a check: seconds until the table's findings are on the screen, until the end, and of processor time."""
    (folder / "recipe.yaml").write_text(RECIPE.format(column=column))
    command = [sys.executable, "-m", "finetune", "check", "--config", "recipe.yaml"]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("rows: ")
        reported = time.perf_counter() - started
        process.stdout.read()
    assert process.returncode == 0
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return reported, seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the table (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="how often each is timed (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_table(folder, options.rows)
        for column in ("caption", "label"):
            reported, seconds, busy = zip(*(time_check(folder, column) for _ in range(options.repeats)), strict=True)
            print(
                f"{options.rows:,} rows with a {column}: table reported after {statistics.median(reported):.1f} s, "
                f"whole command median {statistics.median(seconds):.1f} s "
                f"({min(seconds):.1f} to {max(seconds):.1f} s), {statistics.median(busy):.1f} s of processor time, "
                f"load {os.getloadavg()[0]:.1f}"
            )


if __name__ == "__main__":
    main()
