"""Several labels an image: average precision says how well classes find their images, and images their labels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from finetune.core.types import Answers
from finetune.metrics.row_metric import RowMetric, require
from finetune.metrics.statistics import Figure, MeanAveragePrecision, mean


class AveragePrecision(RowMetric):
    """Average precision of class scores where an image may have several labels, or none.

    The figures equal torchmetrics' and scikit-learn's: a precision is taken at each distinct score, so images with
    equal scores come in together, and a class that scores all images alike gets the share of its images.

    Args:
        names: Names of the classes, in the order of the scores' columns.

    Example:
        >>> metric = AveragePrecision(["cat", "dog"])
        >>> targets = torch.tensor([[True, False], [True, True], [False, False]])
        >>> metric.update(torch.tensor([[0.9, 0.3], [0.1, 0.2], [0.4, 0.1]]), targets)
        >>> {name: round(float(figure), 3) for name, figure in metric.compute().items() if "/" in name}
        {'average_precision/cat': 0.833, 'average_precision/dog': 0.5}
    """

    headline = "mean_average_precision"
    scores: list[Tensor]
    targets: list[Tensor]
    ranking: list[Tensor]

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        for name in ("scores", "targets", "ranking"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Takes in a batch of rows.

        Args:
            scores: Float tensor of shape (B, C), higher is better; any scale.
            targets: Bool tensor of shape (B, C), true where an image has a label.

        Raises:
            ValueError: If a score is not finite, or the shapes differ from each other or from the names.
        """
        if not scores.isfinite().all():
            raise ValueError("Expected scores to be finite, but got NaN or infinity.")
        if not scores.shape == targets.shape == (len(scores), len(self.names)):
            raise ValueError(
                f"Expected scores and targets to have {len(self.names)} columns, but got shapes {tuple(scores.shape)} "
                f"and {tuple(targets.shape)}."
            )
        scores = scores.detach().float()
        self.scores.append(scores)
        self.targets.append(targets)
        self.ranking.append(label_ranking_precision(scores, targets))

    def observe(self, answers: Answers) -> None:
        """Takes in the class scores of a batch of rows, see `update`."""
        self.update(require(answers.class_scores, "class_scores"), answers.truth)

    def compute(self) -> dict[str, Tensor]:
        """Returns the figures; those of the mean are NaN where no row has a label.

        ``mean_average_precision`` is the mean over the classes that occur, each of which has its own
        ``average_precision/NAME``. ``label_ranking_average_precision`` is the mean over the images that have a label
        of the labels' precision in the image's own order of the classes.
        """
        figures = self.figures()
        precision = self._precision()
        by_class = precision.by_class(torch.ones(precision.units, 1))[:, 0]
        occurring = [pair for pair in zip(self.names, by_class, strict=True) if not pair[1].isnan()]
        return {
            self.headline: by_class.nanmean(),
            **{name: figure.point_estimate() for name, figure in figures.items() if name != self.headline},
            **{f"average_precision/{name}": average for name, average in occurring},
        }

    def figures(self) -> dict[str, Figure]:
        """Returns the two means as figures that a bootstrap can draw from.

        Units are the rows; for ``label_ranking_average_precision`` those that have a label.
        """
        ranking = dim_zero_cat(self.ranking)
        return {
            self.headline: self._precision(),
            "label_ranking_average_precision": mean(ranking[~ranking.isnan()]),
        }

    def _precision(self) -> MeanAveragePrecision:
        return MeanAveragePrecision(dim_zero_cat(self.scores), dim_zero_cat(self.targets))


def label_ranking_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """Returns how well each image ranks its labels, float shape (B,), NaN for images without any.

    For each label of an image, take the share of labels among the classes that score at least as high; average these.

    Args:
        scores: Float tensor of shape (B, C), higher is better.
        targets: Bool tensor of shape (B, C), true where an image has a label.

    Example:
        >>> label_ranking_precision(torch.tensor([[0.9, 0.5, 0.1]]), torch.tensor([[True, False, True]]))
        tensor([0.8333])
    """
    rows, labels = targets.nonzero(as_tuple=True)
    reached = scores[rows] >= scores[rows, labels][:, None]
    precisions = ((reached & targets[rows]).sum(1) / reached.sum(1)).to(scores.dtype)
    return torch.zeros_like(scores[:, 0]).index_add(0, rows, precisions) / targets.sum(1)
