"""Images per second of `finetune classify` over a folder, beside its two parts alone.

    python benchmarks/embedding.py --rounds 5

Draws folders of images: small PNGs, photographs as JPEGs of 640 x 480 and of 1600 x 1200 pixels. Times three things in
turns, in one process: opening and preparing the images on all cores; the image tower, over batches that are prepared
already; and `classify` by two prompts. What `classify` needs once, opening the model, drops out: it is asked about a
quarter of the images too, and the difference counts. Where both parts need the processor they cannot go on at once:
then the most that any loop can reach is the time of both together, which the table names too.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from finetune import Base, classify
from finetune.data.prepare.images import ImagePreparation, open_image
from finetune.inference.embed import find_device
from finetune.inference.pictures import IMAGES
from finetune.model.towers import AlignTowers

KINDS = {
    "PNG, 64 x 64": (64, 64, "png"),
    "JPEG, 640 x 480": (640, 480, "jpg"),
    "JPEG, 1600 x 1200": (1600, 1200, "jpg"),
}
CHECKPOINT = "align-mini"


def write_images(folder: Path, count: int, width: int, height: int, suffix: str) -> list[Path]:
    """Writes pictures of soft shapes with some grain, which compress as photographs do."""
    random = np.random.default_rng(0)
    for index in range(count):
        shapes = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height))
        grain = random.normal(0, 6, (height, width, 3))
        Image.fromarray((np.asarray(shapes) + grain).clip(0, 255).astype(np.uint8)).save(
            folder / f"{index:05}.{suffix}"
        )
    return sorted(folder.iterdir())


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(paths: list[Path], rounds: int) -> tuple[float, float, float]:
    """Median images per second of preparing, of the tower, and of classify."""
    device = find_device()
    base = Base.open(CHECKPOINT)
    prepare = ImagePreparation.from_processor(base.processor().image_processor)
    towers = AlignTowers.of(base).to(device)
    batch = torch.from_numpy(np.stack([prepare(open_image(path)) for path in paths[:IMAGES]])).to(device)
    labels, few = ("a drawing", "a photograph"), len(paths) // 4

    def prepare_all() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda path: prepare(open_image(path)).shape, paths))

    @torch.no_grad()
    def ask_tower() -> None:
        for _ in range(len(paths) // IMAGES):
            towers.image_features(batch).cpu()

    found = []
    for _ in range(rounds):
        forward, decoding = seconds(ask_tower), seconds(prepare_all)
        whole = seconds(lambda: classify(CHECKPOINT, paths, labels))
        found.append((decoding, forward, whole - seconds(lambda: classify(CHECKPOINT, paths[:few], labels))))
    medians = map(statistics.median, zip(*found, strict=True))
    return tuple(count / time for count, time in zip((len(paths), len(paths), len(paths) - few), medians, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="images of a folder, a multiple of 128 (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed (%(default)s)")
    options = parser.parse_args()
    print("| images | opened/s | forward/s | classify/s | of the slower | of both together |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, shape in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            opened, forward, whole = measure(write_images(Path(folder), options.images, *shape), options.rounds)
        both = 1 / (1 / opened + 1 / forward)
        ratios = f"{whole / min(opened, forward):.2f} | {whole / both:.2f}"
        print(f"| {name} | {opened:.0f} | {forward:.0f} | {whole:.0f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
