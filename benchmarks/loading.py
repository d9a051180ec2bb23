"""Images per second of the loader alone, by workers: decoded, decoded and augmented, and read as they are kept.

    OMP_WAIT_POLICY=passive python benchmarks/loading.py --rounds 5

Draws folders of images: small PNGs, photographs as JPEGs of 640 x 480 and of 2000 x 1500 pixels. Goes through each
training loader twice a round, in turns with all others; the second time counts, when workers run and images are kept.
The last line of a kind is the work of one core for an image, in milliseconds, which busy neighbours change less.
Says as well what Pillow's `draft`, which decodes a JPEG at a fraction of its size, would make of the pixels.
"""

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import albumentations
import numpy as np
from embedding import write_images
from PIL import Image

from finetune import ImageTextDataModule, Table
from finetune.data.loading.loader import TrainBatchLoader
from finetune.data.prepare.images import ImagePreparation, open_image

KINDS = {
    "PNG, 72 x 72": (72, 72, "png", 512),
    "JPEG, 640 x 480": (640, 480, "jpg", 192),
    "JPEG, 2000 x 1500": (2000, 1500, "jpg", 32),
}
WAYS = ("decoded", "augmented", "kept")
WORKERS = (0, 1, 2)
BATCH = 8


def write_table(folder: Path, images: list[Path]) -> Path:
    path = folder / "table.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption", "split"])
        rows.writerows([image, f"picture {at}", "train"] for at, image in enumerate(images))
    return path


def build_loader(table: Path, way: str, workers: int, side: int) -> TrainBatchLoader:
    """Builds a training loader as a recipe does."""
    crop = albumentations.RandomResizedCrop((side, side), scale=(0.5, 1.0))
    data = ImageTextDataModule(
        Table(str(table), caption="caption", split="split"),
        "align-mini",
        augmentations=[crop, albumentations.HorizontalFlip()] if way == "augmented" else None,
        image_size=side,
        batch_size=BATCH,
        num_workers=workers,
        cache=str(table.parent / "kept") if way == "kept" else None,
    )
    return data.train_dataloader()


def time_epoch(loader: TrainBatchLoader) -> tuple[float, float]:
    """Times the second of two epochs: images per second, and this process's milliseconds of work for an image."""
    for _ in range(2):
        started, worked = time.perf_counter(), time.process_time()
        count = sum(len(batch.rows) for batch in loader)
        seconds, work = time.perf_counter() - started, time.process_time() - worked
    return count / seconds, 1000 * work / count


def measure(table: Path, rounds: int, side: int) -> dict[tuple[str, int], tuple[float, float]]:
    """Measures every way with every number of workers, in turns."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {
        (way, workers): [] for way in WAYS for workers in WORKERS
    }
    for _ in range(rounds):
        for way, workers in found:
            found[way, workers].append(time_epoch(build_loader(table, way, workers, side)))
    return {key: tuple(map(statistics.median, zip(*each, strict=True))) for key, each in found.items()}


def compare_draft(images: list[Path], side: int) -> Iterator[tuple[bool, int, float]]:
    """Yields whether `draft` makes an equal image, by how many levels it is off at most, and its share of the time."""
    prepare = ImagePreparation(size=(side, side), resample=Image.Resampling.BICUBIC, crop=None)
    for path in images:
        started = time.perf_counter()
        whole = prepare(open_image(path))
        middle = time.perf_counter()
        with Image.open(path) as image:
            image.draft("RGB", (side, side))
            drafted = prepare(image.convert("RGB"))
        ratio = (time.perf_counter() - middle) / (middle - started)
        yield np.array_equal(whole, drafted), int(np.abs(whole.astype(int) - drafted).max()), ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each cell (%(default)s)")
    parser.add_argument("--side", type=int, default=96, help="pixels that the model sees (%(default)s)")
    options = parser.parse_args()
    print(f"| images/s at {options.side} px | workers | {' | '.join(WAYS)} |")
    print(f"| --- | ---: |{' ---: |' * len(WAYS)}")
    drafts = []
    for kind, (width, height, suffix, count) in KINDS.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "images"
            folder.mkdir()
            images = write_images(folder, count, width, height, suffix)
            found = measure(write_table(Path(name), images), options.rounds, options.side)
            for workers in WORKERS:
                cells = [f"{found[way, workers][0]:,.0f}" for way in WAYS]
                print(f"| {kind} | {workers} | {' | '.join(cells)} |", flush=True)
            cells = [f"{found[way, 0][1]:.2f}" for way in WAYS]
            print(f"| {kind} | ms of one core | {' | '.join(cells)} |", flush=True)
            if suffix == "jpg":
                equal, differences, ratios = zip(*compare_draft(images, options.side), strict=True)
                drafts.append(
                    f"draft, {kind}: {sum(equal)} of {count} images bit-equal, a level up to {max(differences)} off, "
                    f"{statistics.median(ratios):.2f} of the time"
                )
    print("\n" + "\n".join(drafts))


if __name__ == "__main__":
    main()
