"""The labels that images really have, and how right a classifier's scores are by them."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.core.errors import RecipeError, did_you_mean
from finetune.core.places import show
from finetune.inference.classifiers import Classifier

Truth = Sequence[str | Collection[str] | None]
"""The label of each image, or all of its labels; None or an empty text where nothing is known of it."""


class Measured(NamedTuple):
    """How right scores are.

    Attributes:
        metrics: Those of `ClassAccuracy`, or of `AveragePrecision` where an image may have several labels.
        images: Number of images that were counted; without any there are no metrics.
    """

    metrics: dict[str, float]
    images: int


class NumberedTruth(NamedTuple):
    """The classes that images have.

    Attributes:
        known: Bool tensor of shape (N,), whether anything is known of an image.
        targets: Bool tensor of shape (N, C), which classes it has.
        classifier: Whose classes they are.
    """

    known: Tensor
    targets: Tensor
    classifier: Classifier

    @classmethod
    def of(cls, classifier: Classifier, images: Sequence[str], truth: Truth) -> "NumberedTruth":
        """Numbers the labels of images.

        Args:
            classifier: What will answer.
            images: What each image is called.
            truth: Their labels, as a table or the classifier calls them.

        Raises:
            RecipeError: If there is not one for each image, a label is none of the classes, or an image has several
                where the classifier gives one.
        """
        if len(truth) != len(images):
            raise RecipeError(f"Expected a true label for each of {len(images)} images, but got {len(truth)}.")
        numbers = {name: number for number, name in enumerate(classifier.classes)}
        targets = torch.zeros(len(images), len(numbers), dtype=torch.bool)
        known = torch.tensor([label is not None and label != "" for label in truth], dtype=torch.bool)
        for row, (image, given) in enumerate(zip(images, truth, strict=True)):
            labels = [given] if isinstance(given, str) else [*(given or ())]
            if known[row] and len(labels) != 1 and not classifier.is_multilabel:
                raise RecipeError(
                    f"Expected one true label of {show(image)}, but got {len(labels)}: {classifier.name} gives each "
                    "image one. Leave the image out, or put None in place of its labels."
                )
            for label in filter(None, labels):
                name = classifier.names.get(label, label)
                if name not in numbers:
                    raise RecipeError(
                        f"Expected the true label of {show(image)} to be among those that are asked about, but got "
                        f"{label!r}. {did_you_mean(name, numbers)}"
                    )
                targets[row, numbers[name]] = True
        return cls(known, targets, classifier)

    def measure(self, scores: Tensor, read: Sequence[int]) -> Measured:
        """Measures scores.

        Args:
            scores: Float tensor of shape (images that could be read, C), higher is better.
            read: Which of the images these are.
        """
        from finetune.metrics.accuracy import ClassAccuracy  # torchmetrics takes seconds to import
        from finetune.metrics.average_precision import AveragePrecision

        known, targets = self.known[read], self.targets[read]
        if not known.any():
            return Measured({}, 0)
        if self.classifier.is_multilabel:
            metric: AveragePrecision | ClassAccuracy = AveragePrecision(self.classifier.classes)
            metric.update(scores[known], targets[known])
        else:
            metric = ClassAccuracy()
            metric.update(scores[known], targets[known].int().argmax(dim=1))
        metrics = {name: float(figure) for name, figure in metric.compute().items()}
        return Measured(metrics, int(known.sum()))
