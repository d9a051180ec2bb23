"""Unit costs that one process measures by itself: the loss of some rows among many, a shard, and a large table's order.

One device's share of a batch of 32,768 rows on 256 devices is 128 rows against all columns. That is computed here as it
would be there: only the other rows' features are drawn instead of received.
"""

import io
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from embedding import write_images
from memory_watch import MemoryWatch, resident_bytes
from speed_meter import DEVICE, synchronise

from finetune.core.types import Batch, Embeddings
from finetune.data.loading.sampler import TrainBatches
from finetune.data.prepare.images import ImagePreparation, open_image
from finetune.data.prepare.members import Member
from finetune.data.table.tar_index import Tar
from finetune.objectives import Contrastive

Record = dict[str, Any]
PICTURE = (400, 300)
COYO = 746_972_269
"""Rows of COYO-700M (kakaobrain/coyo-dataset, README)."""


def draw_rows(rows: int, dimension: int) -> tuple[Embeddings, Batch]:
    """Draws features and ids of different rows.

    Args:
        rows: Those of all devices.
        dimension: Of an embedding.
    """
    images, texts = (torch.randn(rows, dimension, device=DEVICE, requires_grad=True) for _ in range(2))
    ids = torch.arange(rows, device=DEVICE)
    nothing = torch.empty(rows, 0, device=DEVICE)
    batch = Batch(nothing, nothing, nothing, ids, ids, ids, torch.full_like(ids, -1), torch.ones(rows, device=DEVICE))
    return Embeddings(images, texts, torch.tensor(0.05, device=DEVICE)), batch


def measure_loss(rows: int, columns: int, dimension: int, repeats: int) -> Record:
    """Times one device's part of the loss as a step computes it, and the memory of that.

    A step asks twice: for the loss with its gradient, and for the loss at chance (`finetune.training.collapse`).

    Args:
        rows: Of this device.
        columns: Rows of all devices.
        dimension: Of an embedding.
        repeats: How often; the median counts.
    """
    objective, own, seconds = Contrastive(label_smoothing=0.1), slice(0, rows), []
    embeddings, batch = draw_rows(columns, dimension)
    before = resident_bytes()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with MemoryWatch(0.001) as watch:
        for _ in range(1 + repeats):
            synchronise()
            started = time.perf_counter()
            objective.part(embeddings, batch, own).backward()
            with torch.no_grad():
                objective.part(embeddings, batch, own)
            synchronise()
            seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else watch.peak
    about = {"rows": rows, "columns": columns, "dimension": dimension}
    return {**about, "seconds": statistics.median(seconds[1:]), "memory": max(0, peak - before)}


def write_shard(path: Path, pictures: list[Path]) -> None:
    """Writes a tar of pictures and captions as `finetune prepare shard` lays them out, an hour old.

    Args:
        path: The tar.
        pictures: JPEGs.
    """
    with tarfile.open(path, "w") as tar:
        for number, picture in enumerate(pictures):
            for ending, content in (("jpg", picture.read_bytes()), ("txt", f"picture {number}".encode())):
                member = tarfile.TarInfo(f"{number:09}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    os.utime(path, (time.time() - 3600,) * 2)  # what was written just now may still change, so no index is kept


def measure_shard(count: int, side: int, repeats: int) -> Record:
    """Times what a shard costs: its headers at the first start, its index at the second, and a picture.

    Args:
        count: Pictures in a shard.
        side: Pixels that the model sees.
        repeats: Shards; the median counts.

    Returns:
        CPU seconds of `headers` and `index` for a row, and `read` and `decode` for a picture; bytes for a row of the
        `tar`, of its pictures (`picture`), and of the saved index (`kept`).
    """
    prepare = ImagePreparation(size=(side, side), resample=2, crop=None)
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        pictures = write_images(folder / "pictures", 64, *PICTURE, "jpg")
        pictures = [pictures[number % len(pictures)] for number in range(count)]
        os.environ["ALIGN_FINETUNE_CACHE"] = str(folder / "cache")
        Tar.of_path(_written(folder / "first.tar", pictures[:1])).entries()  # imports
        for number in range(repeats):
            tar = Tar.of_path(_written(folder / f"{number}.tar", pictures))
            headers, entries = cpu_seconds(tar.entries)
            index, _ = cpu_seconds(tar.entries)
            own = [Member(str(folder / f"{number}.tar"), *entry[:3]) for entry in entries if entry.ending == "jpg"]
            sample = own[:: max(1, len(own) // 64)]
            read, contents = cpu_seconds(partial(read_all, sample))
            opened = folder / "opened.jpg"
            decode = []
            for content in contents:
                opened.write_bytes(content)
                decode.append(cpu_seconds(partial(open_and_prepare, opened, prepare))[0])
            costs = {"headers": headers / count, "index": index / count, "read": read / len(sample)}
            found.append({**costs, "decode": statistics.median(decode)})
        kept = max(path.stat().st_size for path in (folder / "cache" / "shards").iterdir())
        sizes = {"tar": (folder / "0.tar").stat().st_size, "picture": sum(map(_size_of, pictures)), "kept": kept}
    medians = {key: statistics.median(one[key] for one in found) for key in found[0]}
    return {"rows": count, **medians, "bytes": {key: value / count for key, value in sizes.items()}}


def read_all(members: list[Member]) -> list[bytes]:
    """Reads members of a tar."""
    return [member.read() for member in members]


def open_and_prepare(path: Path, prepare: ImagePreparation) -> None:
    """Decodes a picture and makes it as large as the model asks."""
    prepare(open_image(path))


def _written(path: Path, pictures: list[Path]) -> Path:
    write_shard(path, pictures)
    return path


def _size_of(path: Path) -> int:
    return path.stat().st_size


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of all threads that some work takes, and what it returns."""
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


def measure_order(rows: int, batch_size: int) -> Record:
    """Times the order of an epoch: its start, and each batch of it.

    Args:
        rows: Of the table; the order of any number is computed where it is asked for.
        batch_size: Rows of a batch, over all devices.
    """
    batches = TrainBatches(rows, batch_size, seed=0)
    started = time.process_time()
    stream = iter(batches)
    next(stream)
    middle = time.process_time()
    some = [*islice(stream, 4)]
    assert all(len(np.unique([row for row, _ in batch])) == len(batch) for batch in some)
    return {
        "rows": rows,
        "batch_size": batch_size,
        "first": middle - started,
        "later": (time.process_time() - middle) / 4,
    }


def main() -> None:
    options = json.loads(sys.argv[1])
    dimension, repeats = options["dimension"], options["repeats"]
    found = {
        "loss": [measure_loss(*pair, dimension, repeats) for pair in options["pairs"]],
        "shard": measure_shard(options["shard_rows"], options["image_size"], repeats),
        "order": measure_order(COYO, 32_768),
    }
    Path(options["output"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
