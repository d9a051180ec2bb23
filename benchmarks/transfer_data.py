"""Pictures, texts and classes of a task, decoded once and kept as bytes, the same for each method."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transfer_tasks import Gallery, Task
from transformers import AlignModel, AlignProcessor

from finetune.data.prepare.images import ImagePreparation, Pixels, open_image
from finetune.data.prepare.texts import TextEncoder
from finetune.data.table.rows import Rows
from finetune.data.table.table import Table
from finetune.model.base import Base
from finetune.model.pixels import PixelScale

BASE = "align-mini"


@cache
def base() -> Base:
    """Opens the base, once."""
    return Base.open(BASE)


def load_base() -> AlignModel:
    """Loads an untouched copy of the base, in evaluation mode."""
    return base().load()


@cache
def processor(image_size: int) -> AlignProcessor:
    """Loads the base's processor at an image size."""
    return base().processor(image_size)


@cache
def _preparation(image_size: int) -> ImagePreparation:
    return ImagePreparation.from_processor(processor(image_size).image_processor)


@cache
def _decoded(path: str, image_size: int) -> Pixels:
    """Decodes an image file at the size that the towers see, uint8 of shape (3, S, S)."""
    return _preparation(image_size)(open_image(path))


@dataclass(frozen=True, eq=False)
class Pictures:
    """Rows of one split.

    Attributes:
        pixels: Uint8 array of shape (N, 3, S, S).
        texts: The caption of each row, or its label in the template.
        label_ids: Int64 tensor of shape (N,), positions in `classes`, -1 without labels.
        image_ids: Int64 tensor of shape (N,), equal for equal images.
        caption_ids: Int64 tensor of shape (N,), equal for equal captions.
        classes: The text of each class; empty without labels.
        image_size: S.
    """

    pixels: Pixels
    texts: list[str]
    label_ids: Tensor
    image_ids: Tensor
    caption_ids: Tensor
    classes: tuple[str, ...]
    image_size: int

    def __len__(self) -> int:
        return len(self.texts)

    def pixel_values(self, pixels: Pixels) -> Tensor:
        """Turns bytes of shape (B, 3, S, S) into what the towers receive."""
        return PixelScale(base().levels)(torch.from_numpy(pixels))


def pictures(rows: Rows, split: str, gallery: Gallery) -> Pictures:
    """Decodes the rows of a split.

    Args:
        rows: A table's rows.
        split: `train`, `val` or `test`.
        gallery: The gallery they come from.
    """
    indices = rows.indices(split)
    size = gallery.image_size
    texts = [str(rows.captions[index]) for index in indices]
    if rows.classes:
        texts = [gallery.template.replace("{}", text) for text in texts]
    return Pictures(
        pixels=np.stack([_decoded(str(rows.images[index]), size) for index in indices]),
        texts=texts,
        label_ids=torch.from_numpy(rows.label_ids[indices]),
        image_ids=torch.from_numpy(rows.image_ids[indices]),
        caption_ids=torch.from_numpy(rows.caption_ids[indices]),
        classes=tuple(gallery.template.replace("{}", name) for name in rows.classes),
        image_size=size,
    )


@cache
def gallery_pictures(gallery: Gallery, folder: Path) -> Pictures:
    """Decodes the test rows of a gallery."""
    return pictures(gallery.read(folder).read(required=("test",)), "test", gallery)


@dataclass(frozen=True, eq=False)
class TaskData:
    """A task with the rows that one seed draws.

    Attributes:
        task: The task.
        table: The training table, for the toolkit to read itself.
        train: Training rows.
        val: Validation rows, by which settings are chosen.
        galleries: The places to measure: what `Task.places` names, decoded.
    """

    task: Task
    table: Table
    train: Pictures
    val: Pictures
    galleries: dict[str, Pictures]


def task_data(task: Task, folder: Path, seed: int) -> TaskData:
    """Reads and decodes what a cell needs.

    Args:
        task: The task.
        folder: The folder of data.
        seed: Draws the rows of few-shot tasks.
    """
    table = task.table(folder, seed)
    rows = table.read()
    return TaskData(
        task=task,
        table=table,
        train=pictures(rows, "train", task.home),
        val=pictures(rows, "val", task.home),
        galleries={name: gallery_pictures(place, folder) for name, place in task.places().items()},
    )


@cache
def text_encoder() -> TextEncoder:
    """Loads the base's tokenizer."""
    return TextEncoder.from_processor(base().processor())


def tokens(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Encodes texts as input ids and attention mask, padded to the longest text.

    Args:
        texts: B texts.
    """
    encoder = text_encoder()
    ids, mask = encoder.pad([encoder.encode(text) for text in texts])
    return torch.as_tensor(ids), torch.as_tensor(mask)
