"""Filters generated metadata with COYO-700M's columns: seconds, and the most memory that the process held.

    python benchmarks/filter_rows.py --rows 10000000

Another process writes the Parquet files first, so that its memory does not count. All rows name one image file.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetune.data.table.table import Table

FILTER = "clip_similarity_vitb32 > 0.3 and watermark_score < 0.5 and nsfw_score_opennsfw2 < 0.1 and num_faces == 0"
FILE_ROWS = 1_000_000


def write_metadata(folder: Path, rows: int) -> None:
    """Writes files of at most a million rows each, with columns of the kinds that COYO-700M has."""
    generator = np.random.default_rng(0)
    for start in range(0, rows, FILE_ROWS):
        ids = np.arange(start, min(start + FILE_ROWS, rows))
        count = len(ids)
        columns = {
            "id": ids,
            "image": ["image.jpg"] * count,
            "url": [f"https://example.org/pictures/{number:020d}/photograph.jpg" for number in ids],
            "text": [f"A photograph of the thing that has the number {number}, as sold in shops" for number in ids],
            "width": generator.integers(200, 2_000, count),
            "height": generator.integers(200, 2_000, count),
            "clip_similarity_vitb32": generator.normal(0.28, 0.05, count).astype(np.float32),
            "clip_similarity_vitl14": generator.normal(0.24, 0.05, count).astype(np.float32),
            "nsfw_score_opennsfw2": (generator.random(count) ** 6).astype(np.float32),
            "watermark_score": generator.random(count).astype(np.float32),
            "aesthetic_score_laion_v2": generator.normal(5, 1, count).astype(np.float32),
            "num_faces": generator.poisson(0.4, count),
        }
        pq.write_table(pa.table(columns), folder / f"part-{start // FILE_ROWS:05d}.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of metadata (%(default)s)")
    parser.add_argument("--filter", default=FILTER, help="the filter (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "image.jpg").touch()
        writer = multiprocessing.get_context("spawn").Process(target=write_metadata, args=(folder, options.rows))
        writer.start()
        writer.join()
        size = sum(path.stat().st_size for path in folder.glob("*.parquet"))
        started = time.perf_counter()
        table = Table(str(folder / "*.parquet"), caption="text", image_id="id", filter=options.filter)
        rows = table.read()
        seconds = time.perf_counter() - started
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{options.rows:,} rows, {size / 2**20:,.0f} MiB of Parquet")
    for condition, removed in rows.removed:
        print(f"  {removed:>12,} removed by {condition}")
    print(f"  {len(rows):>12,} left")
    print(f"{seconds:.1f} s, at most {most:,.0f} MiB")


if __name__ == "__main__":
    main()
