"""Chooses some training rows to look at, and collects their pictures and texts as the model gets them."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

from finetune.core.types import Sample
from finetune.data.checks.unreadable import Unreadable
from finetune.data.loading.dataset import ImageTextDataset
from finetune.data.prepare.images import try_image
from finetune.data.table.cells import Integers

ROWS = 12  # shown rows of a table, unless there are more classes
MOST_CLASSES = 24
EPOCHS = 3


class View(NamedTuple):
    """A row in one epoch.

    Attributes:
        place: The place of the row, as `file:row`.
        picture: The pixels that the image tower gets, before normalisation.
        text: The text as the text tower reads it.
        cut_off: The end of the text that is cut off.
    """

    place: str
    picture: Image.Image
    text: str
    cut_off: str


class Example(NamedTuple):
    """A training row, or several rows of one image from which each epoch draws one.

    Attributes:
        place: The place of the first epoch's row, as `file:row`.
        class_name: The class, empty in tables without labels.
        original: The image as it is in the file, upright; None where it cannot be read.
        views: The row in each of the first epochs in which its image can be read and augmented.
        reason: Why it cannot in one of them, in a sentence; else empty.
    """

    place: str
    class_name: str
    original: Image.Image | None
    views: tuple[View, ...]
    reason: str = ""


def collect_examples(dataset: ImageTextDataset) -> list[Example]:
    """Collects some examples of each class, or evenly spaced ones in tables without classes.

    Args:
        dataset: The training rows, with the augmentation.
    """
    return [_example(dataset, position) for position in choose_positions(dataset)]


def choose_positions(dataset: ImageTextDataset) -> list[int]:
    """Chooses the positions of the items to show, class by class.

    Args:
        dataset: The training rows.
    """
    rows, choices = dataset.rows, dataset.choices
    if not rows.classes:
        return _spaced(np.arange(len(choices)), ROWS)
    labels = choices.labels(rows.label_ids)
    shown = _spaced(np.unique(labels), MOST_CLASSES)
    each = max(1, ROWS // max(1, len(shown)))
    return [at for label in shown for at in _spaced(np.flatnonzero(labels == label), each)]


def _spaced(values: Integers, count: int) -> list[int]:
    count = min(count, len(values))
    return [int(values[at * len(values) // count]) for at in range(count)]


def _example(dataset: ImageTextDataset, position: int) -> Example:
    rows = dataset.rows
    row = dataset.choices.draw(position, 0, dataset.seed)
    label = int(rows.label_ids[row])
    class_name = rows.classes[label] if rows.classes and label >= 0 else ""
    original = try_image(rows.images[row])
    seen = [(epoch, dataset[position, epoch]) for epoch in range(EPOCHS)]
    reasons = [item.reason for _, item in seen if isinstance(item, Unreadable)]
    if isinstance(original, str):
        return Example(rows.place(row), class_name, None, (), f"The image cannot be read: {original}.")
    return Example(rows.place(row), class_name, original, tuple(_views(dataset, seen)), *reasons[:1])


def _views(dataset: ImageTextDataset, seen: Iterable[tuple[int, Sample | Unreadable]]) -> Iterable[View]:
    for epoch, sample in seen:
        if isinstance(sample, Sample):
            picture = Image.fromarray(sample.pixel_values.permute(1, 2, 0).numpy())
            text = dataset.caption(sample.row, epoch)
            read, cut_off = dataset.texts.decode(sample.input_ids), dataset.texts.cut_off(text)
            yield View(dataset.rows.place(sample.row), picture, read, cut_off)
