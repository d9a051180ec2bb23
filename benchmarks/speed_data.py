"""The rows of the training-speed benchmark: as the toolkit reads them, and as a script of a user's would."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import AlignProcessor

from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.loading.sampler import TrainBatches

TEMPLATE = "a photo of a {}."
WORDS = ("red", "green", "small", "large", "old", "shiny", "wooden", "striped", "round", "plain", "broken", "new")
THINGS = ("chair", "bottle", "lamp", "boat", "hat", "kettle", "bicycle", "umbrella", "clock", "basket")
PICTURE = (400, 300)
"""Width and height of a drawn picture, in pixels."""


@dataclass(frozen=True)
class Job:
    """One process of the benchmark.

    Args:
        task: `captions`, `prompts` or `head`.
        side: Who trains.
        checkpoint: Hub id, local folder, or `align-mini`.
        table: A CSV with the columns image, caption, label and split, its train rows a multiple of `batch_size`.
        image_size: Pixels a side.
        batch_size: Rows a step.
        warmup: Steps that are not timed.
        steps: Steps that are timed.
        workers: Processes that read images, for the sides that have some.
        bf16: Whether the bare loops and the toolkit compute in bfloat16.
        rank: Of the adapters.
        epochs: Passes over the table when trained to a score.
    """

    task: str
    side: str
    checkpoint: str
    table: str
    image_size: int
    batch_size: int
    warmup: int
    steps: int
    workers: int
    bf16: bool
    rank: int = 16
    epochs: int = 0

    @property
    def cache(self) -> Path:
        """Where the toolkit keeps decoded images: beside the table, so that later rounds find them."""
        return Path(self.table).parent / "cache"

    @property
    def total(self) -> int:
        """Steps in all."""
        return self.warmup + self.steps

    @property
    def computes_in_bf16(self) -> bool:
        """Whether this side computes in bfloat16: the Trainer as its name says, the others as `bf16` says."""
        return self.side == "trainer-bf16" or (self.bf16 and not self.side.startswith("trainer"))


def write_emoji_tables(folder: Path, emoji: Path, batch_size: int) -> dict[str, Path]:
    """Writes a table for each task from those of `finetune prepare emoji`, cut to whole batches.

    Args:
        folder: Where to write.
        emoji: The folder of `finetune prepare emoji`.
        batch_size: Rows a step.

    Raises:
        SystemExit: If there is none.
    """
    source = emoji / "google.csv"
    if not source.is_file():
        raise SystemExit(f"Expected {source} to be there. Write it by `finetune prepare emoji`, or pass --drawn.")
    rows = pd.read_csv(source, dtype=str, keep_default_na=False)
    rows["image"] = [str((emoji / name).resolve()) for name in rows["image"]]
    rows["label"] = rows["subcategory"]
    splits = {"captions": "split", "prompts": "split_by_picture", "head": "split_by_picture"}
    return {
        task: _write_table(folder / f"{task}.csv", rows.assign(split=rows[split]), batch_size)
        for task, split in splits.items()
    }


def hold_all_out(table: Path) -> Path:
    """Writes a table beside another in which all rows that are not trained on are validation rows.

    Args:
        table: One of `write_emoji_tables`.
    """
    rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    path = table.with_name(f"{table.stem}-held-out.csv")
    rows.assign(split=rows["split"].where(rows["split"] == "train", "val")).to_csv(path, index=False)
    return path


def draw_tables(folder: Path, batch_size: int, steps: int) -> dict[str, Path]:
    """Draws JPEG pictures of noise with captions and labels, enough for an epoch to last all steps.

    Args:
        folder: Where to write.
        batch_size: Rows a step.
        steps: Steps of a training.
    """
    (folder / "images").mkdir()
    trained = batch_size * (steps + 1)
    others = min(batch_size, 64)
    draw = random.Random(0)
    names = [f"images/{number}.jpg" for number in range(trained + 2 * others)]
    with Pool() as pool:
        pool.starmap(_draw_picture, [(folder / name, number) for number, name in enumerate(names)], chunksize=64)
    things = [draw.choice(THINGS) for _ in names]
    words = [" ".join(draw.sample(WORDS, draw.randint(1, 5))) for _ in names]
    captions = [f"{first} {thing} number {n}" for n, (first, thing) in enumerate(zip(words, things, strict=True))]
    rows = pd.DataFrame(
        {
            "image": [str(folder / name) for name in names],
            "caption": captions,
            "label": things,
            "split": ["train"] * trained + ["val"] * others + ["test"] * others,
        }
    )
    path = _write_table(folder / "drawn.csv", rows, batch_size)
    return dict.fromkeys(("captions", "prompts", "head"), path)


def _draw_picture(path: Path, seed: int) -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(PICTURE).save(path, quality=90)


def _write_table(path: Path, rows: pd.DataFrame, batch_size: int) -> Path:
    train, rest = rows[rows["split"] == "train"], rows[rows["split"] != "train"]
    kept = train.iloc[: len(train) // batch_size * batch_size]
    if kept.empty:
        raise SystemExit(f"Expected at least {batch_size} training rows, but got {len(train)}. Lower --batch-size.")
    pd.concat([kept, rest])[["image", "caption", "label", "split"]].to_csv(path, index=False)
    return path


@dataclass(frozen=True)
class PlainRows(Dataset[tuple[Image.Image, str, int]]):
    """The training rows as the data set of a script: picture, text and label of each.

    Attributes:
        images: Files.
        texts: The caption of each row, or its label in a sentence.
        labels: The class of each row.
        classes: Number of classes.
    """

    images: Sequence[str]
    texts: Sequence[str]
    labels: Sequence[int]
    classes: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[Image.Image, str, int]:
        with Image.open(self.images[position]) as image:
            return image.convert("RGB"), self.texts[position], self.labels[position]


def read_plain_rows(job: Job, data: ImageTextDataModule) -> PlainRows:
    """Reads the training rows in the order of the toolkit's first epoch, so that all sides see the same batches.

    Args:
        job: Has the table.
        data: The toolkit's view of it.
    """
    rows = pd.read_csv(job.table, dtype=str, keep_default_na=False)
    names = sorted(rows["label"].unique())
    train = rows[rows["split"] == "train"].reset_index(drop=True)
    sampler: Any = data.train_dataloader().batch_sampler
    assert isinstance(sampler, TrainBatches)
    train = train.iloc[[position for batch in sampler for position, _ in batch]]
    texts = train["caption"] if job.task == "captions" else [TEMPLATE.replace("{}", name) for name in train["label"]]
    return PlainRows(list(train["image"]), list(texts), [names.index(name) for name in train["label"]], len(names))


def collate_texts(
    rows: Sequence[tuple[Image.Image, str, int]], processor: AlignProcessor, padding: bool | str
) -> dict[str, Any]:
    """Prepares pictures and texts with the checkpoint's processor.

    Args:
        rows: Those of a batch.
        processor: The checkpoint's.
        padding: `max_length` for 64 tokens, or True for the longest text of the batch.
    """
    images, texts, _ = zip(*rows, strict=True)
    found = processor(
        images=list(images), text=list(texts), padding=padding, truncation=True, max_length=64, return_tensors="pt"
    )
    return {**found, "return_loss": True}


def collate_labels(rows: Sequence[tuple[Image.Image, str, int]], processor: AlignProcessor) -> dict[str, Any]:
    """Prepares pictures with the checkpoint's processor, and stacks the labels.

    Args:
        rows: Those of a batch.
        processor: The checkpoint's.
    """
    images, _, labels = zip(*rows, strict=True)
    return {**processor(images=list(images), return_tensors="pt"), "labels": torch.tensor(labels)}


def find_collate(job: Job, processor: AlignProcessor, padding: bool | str = True) -> Any:
    """Returns what makes a batch of rows for a plain model.

    Args:
        job: Has the task.
        processor: The checkpoint's.
        padding: As for `collate_texts`.
    """
    if job.task == "head":
        return partial(collate_labels, processor=processor)
    return partial(collate_texts, processor=processor, padding=padding)
