"""Images classified by any model: by class prompts, or by a trained head."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from finetune.core.errors import RecipeError, did_you_mean
from finetune.core.places import show
from finetune.data.prepare.images import ImagePreparation
from finetune.inference.classifiers import Classifier, Labels, choose_classifier, name_truth
from finetune.inference.embed import embed, find_device
from finetune.inference.inputs import Images, list_pictures
from finetune.inference.list_parts import IMAGE
from finetune.inference.pictures import Picture, Pictures, PixelBatch, SkippedImage, name_picture
from finetune.inference.true_labels import read_true_labels


class Classified(NamedTuple):
    """What a model says of images.

    Attributes:
        answered_by: What answered: the head of a folder, or the prompts of a checkpoint, for a screen.
        rows: Columns `image`, the path, or `image N` of the Nth one where it was handed over open; `label`; and
            `probability`. One line per image and label.
        skipped: The images that cannot be read, of which there are no rows.
        metrics: Those of `ClassAccuracy` on the images whose label is known; empty where none is.
        measured: How many these are.
    """

    answered_by: str
    rows: pd.DataFrame
    skipped: tuple[SkippedImage, ...]
    metrics: dict[str, float] = {}  # noqa: RUF012 (a field)
    measured: int = 0


def classify(
    model: str | Path,
    images: Images,
    labels: Labels = (),
    device: torch.device | None = None,
    templates: Sequence[str] = (),
    truth: Sequence[str | None] | str | None = None,
    column: str = IMAGE,
) -> Classified:
    """Returns the probabilities of labels for images. Images that cannot be read are left out and listed.

    Args:
        model: Hub id, folder, `align-mini`, or a finished run.
        images: Files, images that Pillow has opened, uint8 arrays of shape (H, W, 3); folders, tables and tars by their
            paths, and DataFrames; one or several of these.
        labels: What an image may show, see `choose_classifier`.
        device: Where the model runs; None for the fastest.
        templates: Sentences that the labels are written into, likewise.
        truth: The label of each image, by which the answers are measured; None or an empty text where it is not known.
            Or the column of tables and DataFrames that holds them.
        column: Their column of images.

    Raises:
        RecipeError: As `choose_classifier`, or if a true label is not among those that are asked about.
        CheckpointError: If the model cannot be opened, or is a run that is not finished.
        TableError: If no image is given, something is no image, a file does not exist, or none can be read.

    Example:
        >>> from finetune import classify
        >>> classify("align-mini", "photos/", labels=["a cat", "a dog"]).rows  # doctest: +SKIP
    """
    listed = list_pictures(images, column)
    if isinstance(truth, str):
        truth = read_true_labels(listed.tables, column, truth, listed.paths).labels
    classifier = choose_classifier(model, labels, templates)
    found = ask(classifier, listed.pictures, device or find_device(), name_truth(truth, labels))
    return found._replace(skipped=(*listed.skipped, *found.skipped))


def ask(
    classifier: Classifier, images: Sequence[Picture], device: torch.device, truth: Sequence[str | None] | None = None
) -> Classified:
    """Classifies images.

    Args:
        classifier: What answers.
        images: Paths, addresses and open images, one or more. Those that are not there are left out like damaged ones.
        device: Where the model runs.
        truth: The class of each image, or None; None for all where nothing is measured.

    Raises:
        RecipeError: If one is not among the classes, or an image may have several.
        CheckpointError: If the model cannot be opened.
        TableError: If no image can be read.
    """
    label_ids = None if truth is None else _number_truth(classifier, images, truth)
    pictures = Pictures(images, ImagePreparation.from_processor(classifier.image_processor))
    pictures.require_any()  # before a model is opened
    logits = classifier.load(device)

    def encode(batch: PixelBatch) -> _Scores:
        return _Scores(logits(batch.pixel_values))

    scores = embed(encode, pictures, device, progress="images").class_scores
    probabilities = scores.sigmoid() if classifier.is_multilabel else scores.softmax(dim=-1)
    rows = _tabulate(images, pictures, classifier.classes, probabilities)
    found = Classified(classifier.name, rows, tuple(pictures.skipped))
    return found if label_ids is None else _measure(found, scores, label_ids[pictures.read])


def _number_truth(classifier: Classifier, images: Sequence[Picture], truth: Sequence[str | None]) -> Tensor:
    """The position of each image's class, -1 where it is not known."""
    if classifier.is_multilabel:
        raise RecipeError(
            f"Expected no --truth for {classifier.name}, which finds several labels an image. Leave it out."
        )
    if len(truth) != len(images):
        raise RecipeError(f"Expected a true label for each of {len(images)} images, but got {len(truth)}.")
    numbers = {name: number for number, name in enumerate(classifier.classes)}
    for number, (image, label) in enumerate(zip(images, truth, strict=True), 1):
        if label and label not in numbers:
            raise RecipeError(
                f"Expected the true label of {show(name_picture(image, number))} to be among those that are asked "
                f"about, but got {label!r}. {did_you_mean(label, numbers)}"
            )
    return torch.tensor([numbers[label] if label else -1 for label in truth])


def _measure(found: Classified, scores: Tensor, label_ids: Tensor) -> Classified:
    """Measures the scores of images whose class is known; shapes (images, classes) and (images,)."""
    from finetune.metrics.accuracy import ClassAccuracy  # torchmetrics takes seconds to import

    known = label_ids >= 0
    if not known.any():
        return found
    metric = ClassAccuracy()
    metric.update(scores[known], label_ids[known])
    metrics = {name: float(figure) for name, figure in metric.compute().items()}
    return found._replace(metrics=metrics, measured=int(known.sum()))


class _Scores(NamedTuple):
    class_scores: Tensor


def _tabulate(
    images: Sequence[Picture], pictures: Pictures, labels: Sequence[str], probabilities: Tensor
) -> pd.DataFrame:
    """Puts the probabilities, of shape (images that were read, labels), beside images and labels."""
    return pd.DataFrame(
        {
            "image": np.repeat([show(name_picture(images[at], at + 1)) for at in pictures.read], len(labels)),
            "label": np.tile(np.array(labels, dtype=object), len(pictures.read)),
            "probability": probabilities.flatten().numpy(),
        }
    )
