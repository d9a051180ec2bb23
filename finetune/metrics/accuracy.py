"""Classification: prompts become one embedding for each class, and class scores are measured by their accuracy."""

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from finetune.core.types import Answers
from finetune.metrics.calibration import calibration_error
from finetune.metrics.ranking import TIE, place
from finetune.metrics.row_metric import RowMetric, require
from finetune.metrics.statistics import Figure, MeanOfMeans, mean

ROWS = 4096
"""Rows whose scores are compared at a time, as that takes several copies of them."""


class ClassAccuracy(RowMetric):
    """Accuracy of class scores, and how well their softmax knows it; class prompts or a head may have made them.

    torchmetrics' MulticlassAccuracy gives a tie to the lowest class, which rewards a collapsed model where class 0 is
    frequent; here a tie counts by its chance. Without ties the figures are the same.

    Example:
        >>> metric = ClassAccuracy()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.5, 0.5]]), torch.tensor([0, 1, 0]))
        >>> float(metric.compute()["accuracy"])
        0.5
    """

    headline = "accuracy"
    top1: list[Tensor]
    top5: list[Tensor]
    confidences: list[Tensor]
    correct: list[Tensor]
    label_ids: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("top1", "top5", "confidences", "correct", "label_ids"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, label_ids: Tensor) -> None:
        """Takes in a batch of rows.

        Args:
            scores: Float tensor of shape (B, C), logits: higher is better, minus infinity for "never".
            label_ids: Int64 tensor of shape (B,), in [0, C).

        Raises:
            ValueError: If a score is NaN or infinity, or a label is no class.
        """
        scores = scores.detach().float()
        if not (scores < torch.inf).all():
            raise ValueError("Expected scores to be below infinity, but got NaN or infinity.")
        strangers = label_ids[(label_ids < 0) | (label_ids >= scores.shape[1])]
        if len(strangers):
            raise ValueError(f"Expected label_ids to be in [0, {scores.shape[1]}), but got {int(strangers[0])}.")
        rows = torch.arange(len(scores), device=scores.device)
        scale = scores.abs().where(scores.isfinite(), 0.0).amax(1)
        placement = place(scores, rows, label_ids, TIE * scale)
        self.top1.append(placement.hits(1))
        self.top5.append(placement.hits(5))
        best = scores.softmax(dim=1).max(dim=1)
        self.confidences.append(best.values)
        self.correct.append((best.indices == label_ids).long())
        self.label_ids.append(label_ids)

    def observe(self, answers: Answers) -> None:
        """Takes in the class scores of rows, some at a time, see `update`."""
        scores = require(answers.class_scores, "class_scores")
        for part, label_ids in zip(scores.split(ROWS), answers.truth.split(ROWS), strict=True):
            self.update(part, label_ids)

    def compute(self) -> dict[str, Tensor]:
        """Returns ``accuracy``, ``accuracy_top5``, ``mean_per_class_recall`` and ``expected_calibration_error``.

        ``accuracy_top5`` is there whatever C is, so that tables keep their columns; with up to 5 classes it is 1.
        ``mean_per_class_recall`` is the mean over the classes that occur.
        """
        error = calibration_error(dim_zero_cat(self.confidences), dim_zero_cat(self.correct))
        return {
            **{name: figure.point_estimate() for name, figure in self.figures().items()},
            "expected_calibration_error": error,
        }

    def figures(self) -> dict[str, Figure]:
        """Returns the accuracies and the recall as figures that a bootstrap can draw from; units are the rows.

        The calibration error is not among them: drawing rows adds to the very distances it is made of, so an interval
        would rarely hold the truth (`benchmarks/interval_coverage.py`).
        """
        top1, labels = dim_zero_cat(self.top1), dim_zero_cat(self.label_ids)
        rows = torch.arange(len(top1), device=top1.device)
        return {
            "accuracy": mean(top1),
            "accuracy_top5": mean(dim_zero_cat(self.top5)),
            "mean_per_class_recall": MeanOfMeans(top1, rows, labels),
        }
