"""Work on tables for the growth benchmark: each function returns what prepares the work of a size."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from finetune.core.types import Answers
from finetune.data.checks.check import TableSettings, check_table
from finetune.data.checks.equal_texts import number_texts
from finetune.data.loading.kinds import OneLabel
from finetune.data.loading.sampler import TrainBatches
from finetune.data.loading.sampling import Sampling
from finetune.data.prepare.texts import TextEncoder
from finetune.data.table.table import Table
from finetune.model.base import Base
from finetune.report.classes import find_confusions, find_recalls

Work = Callable[[], object]
Prepare = Callable[[int, Path], Work]

WORDS = ("red", "old", "small", "wooden", "bicycle", "house", "river", "cup", "dog", "street", "under", "beside")
IMAGES = 1000
"""Image files that the rows of a table take turns in; each row is an image of its own by its `image_id`."""

CLASSES = 100
"""Classes of a table where rows grow."""

ROWS = 20_000
"""Rows of a table where classes grow."""


def write_table(folder: Path, rows: int, classes: int = CLASSES) -> Path:
    """Writes a CSV with captions and labels, whose images are small files."""
    path = folder / f"{rows}-{classes}.csv"
    if path.exists():
        return path
    if not (folder / "0.png").exists():
        for number in range(IMAGES):
            Image.new("RGB", (2, 2), (number % 256, number // 256, 0)).save(folder / f"{number}.png")
    generator = np.random.default_rng(0)
    words = generator.choice(WORDS, (rows, 8))
    table = pd.DataFrame(
        {
            "image": [f"{row % IMAGES}.png" for row in range(rows)],
            "id": np.arange(rows),
            "caption": [f"a photo of {' '.join(line)} number {row}" for row, line in enumerate(words)],
            "label": [f"class {label}" for label in generator.integers(0, classes, rows)],
        }
    )
    table.to_csv(path, index=False)
    return path


def open_table(folder: Path, rows: int, column: str, classes: int = CLASSES) -> Table:
    """Opens a table, which is written first where it is not there."""
    return Table(str(write_table(folder, rows, classes)), image_id="id", **{column: column})


def read(column: str) -> Prepare:
    """Reads a table with its checks of columns, images and splits."""
    return lambda rows, folder: open_table(folder, rows, column).read


def read_classes(classes: int, folder: Path) -> Work:
    """Reads a table of `ROWS` rows with that many labels."""
    return open_table(folder, ROWS, "label", classes).read


def check(column: str) -> Prepare:
    """Checks a table as `finetune check` does."""

    def prepare(rows: int, folder: Path) -> Work:
        settings = TableSettings(open_table(folder, rows, column), mirrors=False)
        return lambda: check_table(settings)

    return prepare


def compare_tokens(rows: int, folder: Path) -> Work:
    """Numbers captions that are equal to the model."""
    table = open_table(folder, rows, "caption").read()
    encoder = TextEncoder.from_processor(Base.open("align-mini").processor())
    return lambda: number_texts(table, encoder)


def go_around(sampling: Sampling | None) -> Prepare:
    """Draws all batches of an epoch."""

    def prepare(rows: int, _: Path) -> Work:
        generator = np.random.default_rng(0)
        labels, weights = generator.integers(0, CLASSES, rows), generator.random(rows)
        draw = None if sampling is None else lambda seed, epoch: sampling.order(labels, weights, seed, epoch)
        batches = TrainBatches(rows, 64, 0, draw)
        return lambda: sum(map(len, batches))

    return prepare


def predict_rows(rows: int, folder: Path) -> Work:
    """Lists the predictions of rows, and what the report's page says of their classes."""
    return _predict(rows, CLASSES, folder)


def predict_classes(classes: int, folder: Path) -> Work:
    """Does the same for `ROWS` rows of that many classes."""
    return _predict(ROWS, classes, folder)


def _predict(rows: int, classes: int, folder: Path) -> Work:
    table = open_table(folder, rows, "label", classes).read()
    kind = OneLabel(table)
    torch.manual_seed(0)
    answers = Answers(
        torch.arange(rows),
        *(torch.as_tensor(ids) for ids in (table.image_ids, table.caption_ids, table.label_ids)),
        class_scores=torch.randn(rows, len(table.classes)),
    )
    metric = kind.metric()

    def work() -> object:
        found = kind.predictions(answers, metric)
        return find_recalls(found.assign(before=found["prediction"])), find_confusions(found)

    return work
