"""Some training rows as the model gets them: which ones to look at, and their pictures and texts."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

from finetune.core.types import Sample
from finetune.data.checks.unreadable import Unreadable
from finetune.data.loading.dataset import ImageTextDataset
from finetune.data.prepare.images import try_image
from finetune.data.table.cells import Integers

ROWS = 12  # shown of a table, or at least one of each class
MOST_CLASSES = 24
EPOCHS = 3


class View(NamedTuple):
    """A row in one epoch.

    Attributes:
        place: Where the row stands, as `file:row`.
        picture: The pixels as the image tower gets them, before they are normalised.
        text: The text as the text tower reads it.
        cut_off: The end of the text that is cut off.
    """

    place: str
    picture: Image.Image
    text: str
    cut_off: str


class Example(NamedTuple):
    """A training row, or several of one image of which each epoch draws one.

    Attributes:
        place: Where the row of the first epoch stands, as `file:row`.
        class_name: Its class, empty in tables without labels.
        original: The image as it is in the file, upright, or why it cannot be read.
        views: The row in each of the first epochs; none where an image cannot be read.
    """

    place: str
    class_name: str
    original: Image.Image | str
    views: tuple[View, ...]


def collect_examples(dataset: ImageTextDataset) -> list[Example]:
    """Some of each class, or evenly spaced ones where there are no classes.

    Args:
        dataset: The training rows, with the augmentation.
    """
    return [_example(dataset, position) for position in choose_positions(dataset)]


def choose_positions(dataset: ImageTextDataset) -> list[int]:
    """Positions of the items to show, class by class.

    Args:
        dataset: The training rows.
    """
    rows, choices = dataset.rows, dataset.choices
    if not rows.classes:
        return _spaced(np.arange(len(choices)), ROWS)
    labels = rows.label_ids[choices.rows[choices.starts[:-1]]]
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
    return Example(rows.place(row), class_name, original, tuple(_views(dataset, seen)))


def _views(dataset: ImageTextDataset, seen: Iterable[tuple[int, Sample | Unreadable]]) -> Iterable[View]:
    for epoch, sample in seen:
        if isinstance(sample, Sample):
            picture = Image.fromarray(dataset.images.invert(sample.pixel_values.numpy()))
            text = dataset.caption(sample.row, epoch)
            read, cut_off = dataset.texts.decode(sample.input_ids), dataset.texts.cut_off(text)
            yield View(dataset.rows.place(sample.row), picture, read, cut_off)
