"""Images classified by any model: by class prompts, or by a trained head."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from finetune.core.places import AnyPath, show
from finetune.core.types import PixelBatch
from finetune.data.prepare.images import ImagePreparation
from finetune.inference.classifiers import Classifier, Labels, choose_classifier
from finetune.inference.embed import embed, find_device
from finetune.inference.inputs import Images, list_pictures
from finetune.inference.list_parts import IMAGE
from finetune.inference.pictures import Picture, Pictures, SkippedImage, name_picture
from finetune.inference.true_labels import leave_out_seen, read_seen_table, read_true_labels
from finetune.inference.truth import NumberedTruth, Truth


class Classified(NamedTuple):
    """What a model says of images.

    Attributes:
        answered_by: What answered: the head of a folder, or the prompts of a checkpoint, for a screen.
        rows: Columns `image`, the path, or `image N` of the Nth one where it was handed over open; `label`; and
            `probability`. One line per image and label.
        skipped: The images that cannot be read, of which there are no rows.
        metrics: On the images whose labels are known, those of `ClassAccuracy`, or of `AveragePrecision` where an image
            may have several; empty where none is known.
        measured: How many these are.
        seen: How many others have known labels but do not count, as the run was trained on them or chosen by them.
    """

    answered_by: str
    rows: pd.DataFrame
    skipped: tuple[SkippedImage, ...]
    metrics: dict[str, float] = {}  # noqa: RUF012 (a field)
    measured: int = 0
    seen: int = 0


def classify(
    model: AnyPath,
    images: Images,
    labels: Labels = (),
    device: torch.device | None = None,
    templates: Sequence[str] = (),
    truth: Truth | str | None = None,
    column: str = IMAGE,
    label_separator: str | None = None,
    anyway: bool = False,
) -> Classified:
    """Returns the probabilities of labels for images. Images that cannot be read are left out and listed.

    Args:
        model: Hub id, folder, `align-mini`, or a finished run.
        images: Files, images that Pillow has opened, uint8 arrays of shape (H, W, 3); folders, tables and tars by their
            paths, and DataFrames; one or several of these.
        labels: What an image may show, see `choose_classifier`.
        device: Where the model runs; None for the fastest.
        templates: Sentences that the labels are written into, likewise.
        truth: The label of each image, or a collection of its labels, by which the answers are measured; None, NaN or
            an empty text where nothing is known. Or the column of tables and DataFrames that holds them.
        column: Their column of images.
        label_separator: What separates several labels in a cell; None for that of the run's own table.
        anyway: Whether the answers are also measured on images that the run was trained on or chosen by.

    Raises:
        RecipeError: As `choose_classifier`, or if a true label is not among those that are asked about.
        CheckpointError: If the model cannot be opened, or is a run that is not finished.
        TableError: If no image is given, something is no image, a file does not exist, or none can be read.

    Example:
        >>> from finetune import classify
        >>> classify("align-mini", "photos/", labels=["a cat", "a dog"]).rows  # doctest: +SKIP
    """
    listed = list_pictures(images, column)
    classifier = choose_classifier(os.fspath(model), labels, templates)
    table = None if truth is None or anyway else read_seen_table(os.fspath(model))
    seen = 0
    if isinstance(truth, str):
        separator = classifier.require_separator(label_separator)
        truth, _, seen = read_true_labels(listed.tables, column, truth, listed.paths, separator, table)
    elif truth is not None:
        given = pd.Series([*truth], dtype=object)
        truth = given.where(given.notna(), None).tolist()
        if table is not None and len(truth) == len(listed.paths):
            truth, _, seen = leave_out_seen(truth, listed.paths, table)
    found = ask(classifier, listed.pictures, device or find_device(), truth)
    return found._replace(skipped=(*listed.skipped, *found.skipped), seen=seen)


def ask(
    classifier: Classifier, images: Sequence[Picture], device: torch.device, truth: Truth | None = None
) -> Classified:
    """Classifies images.

    Args:
        classifier: What answers.
        images: Paths, addresses and open images, one or more. Those that are not there are left out like damaged ones.
        device: Where the model runs.
        truth: The labels of each image, see `NumberedTruth`; None where nothing is measured.

    Raises:
        RecipeError: If a label is not among the classes.
        CheckpointError: If the model cannot be opened.
        TableError: If no image can be read.
    """
    names = [name_picture(image, number) for number, image in enumerate(images, 1)]
    numbered = None if truth is None else NumberedTruth.of(classifier, names, truth)
    pictures = Pictures(images, ImagePreparation.from_processor(classifier.image_processor))
    pictures.require_any()  # before a model is opened
    logits = classifier.load(device)

    def encode(batch: PixelBatch) -> _Scores:
        return _Scores(logits(batch.pixel_values))

    scores = embed(encode, pictures, device, progress="images").class_scores
    probabilities = scores.sigmoid() if classifier.is_multilabel else scores.softmax(dim=-1)
    rows = _tabulate([names[at] for at in pictures.read], classifier.classes, probabilities)
    found = Classified(classifier.name, rows, tuple(pictures.skipped))
    if numbered is None:
        return found
    measured = numbered.measure(scores, pictures.read)
    return found._replace(metrics=measured.metrics, measured=measured.images)


class _Scores(NamedTuple):
    class_scores: Tensor


def _tabulate(images: Sequence[str], labels: Sequence[str], probabilities: Tensor) -> pd.DataFrame:
    """Puts the probabilities, of shape (images, labels), beside images and labels."""
    return pd.DataFrame(
        {
            "image": np.repeat([show(image) for image in images], len(labels)),
            "label": np.tile(np.array(labels, dtype=object), len(images)),
            "probability": probabilities.flatten().numpy(),
        }
    )
