"""Times how long a table of tar shards takes to read: headers, captions, and fields of the JSON; no pictures.

    python benchmarks/read_shards.py --samples 100000

Shards of 10,000 samples are generated as img2dataset writes them: a JPEG of 20 KB, a JSON of 14 fields, a caption, and
a modification time with fractions of a second, which costs each member a header more.
"""

import argparse
import io
import json
import resource
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from finetune.data.table.table import RandomSplit, Table

SHARD = 10_000
PICTURE = 20_000  # bytes


def write_shard(path: Path, first: int, generator: np.random.Generator) -> None:
    """Writes one tar; the pictures are noise, since none is opened."""
    with tarfile.open(path, "w|") as tar:
        for number in range(first, first + SHARD):
            key = f"{number // SHARD:05d}{number % SHARD:04d}"
            caption = f"A photograph of the thing that has the number {number}, as sold in shops"
            fields = {
                "caption": caption,
                "url": f"https://example.org/pictures/{number:020d}/photograph.jpg",
                "similarity": round(float(generator.normal(0.3, 0.05)), 6),
                "key": key,
                "status": "success",
                "error_message": None,
                "width": 346,
                "height": int(generator.integers(200, 346)),
                "original_width": 1024,
                "original_height": 768,
                "exif": "{}",
                "sha256": f"{number:064x}",
                "nsfw": "UNLIKELY",
                "license": "?",
            }
            content = {
                "jpg": generator.bytes(PICTURE),
                "json": json.dumps(fields, indent=4).encode(),
                "txt": caption.encode(),
            }
            for ending, data in content.items():
                header = tarfile.TarInfo(f"{key}.{ending}")
                header.size, header.mtime = len(data), 1_700_000_000.25
                tar.addfile(header, io.BytesIO(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000, help="samples, a multiple of 10,000 (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        generator = np.random.default_rng(0)
        for first in range(0, options.samples, SHARD):
            write_shard(Path(name) / f"{first // SHARD:05d}.tar", first, generator)
        settings = {"path": f"{name}/*.tar", "caption": "txt", "split": RandomSplit(val=0.01, test=0.01)}
        for title, table in (
            ("captions", Table(**settings)),
            ("captions, filtered by the JSON", Table(**settings, filter="similarity > 0.3 and width >= 300")),
        ):
            started, busy = time.perf_counter(), time.process_time()
            rows = len(table.read())
            print(
                f"{title}: {rows:,} rows of {options.samples:,} samples in {time.perf_counter() - started:.1f} s, "
                f"{time.process_time() - busy:.1f} s of processor time"
            )
    print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
