"""A model measured on rows."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from finetune.core.types import Answers, Batch
from finetune.inference.embed import embed, find_device
from finetune.inference.models import RowModel, require_finite
from finetune.metrics.row_metric import RowMetric
from finetune.metrics.statistics import Figure


class Evaluation(NamedTuple):
    """What `evaluate` found.

    Attributes:
        metrics: Values by key, such as `test/accuracy`.
        headline: Key of the metric by which models are compared, such as `test/accuracy`.
        figures: By metric that has an interval, how to compute it again for a bootstrap.
        answers: What the model said of each row, in the order of the loader.
    """

    metrics: dict[str, float]
    headline: str
    figures: dict[str, Figure]
    answers: Answers

    @property
    def main(self) -> tuple[str, float]:
        """Key and value of the metric by which models are compared."""
        return self.headline, self.metrics[self.headline]


def evaluate(
    model: RowModel,
    loader: Iterable[Batch],
    metric: RowMetric,
    device: torch.device | None = None,
    progress: str | None = None,
) -> Evaluation:
    """Measures a model on the rows of a loader, in float32.

    Args:
        model: The model.
        loader: The rows, of which each of several processes has its part.
        metric: A fresh one, that of the table's kind; it observes the answers.
        device: Where the model runs; None for the fastest.
        progress: Title under which progress is shown; None shows none.

    Raises:
        RecipeError: If the model answers with NaN or infinity.
    """
    device = device or find_device()
    return measure(embed(model.to(device), loader, device, progress=progress, shared=True), metric)


def measure(answers: Answers, metric: RowMetric) -> Evaluation:
    """Measures what a model said of rows.

    Args:
        answers: What it said.
        metric: A fresh one, that of the table's kind; it observes the answers.

    Raises:
        RecipeError: If a number among them is NaN or infinity.
    """
    require_finite(answers)
    metric.observe(answers)
    return Evaluation(
        metrics={f"test/{name}": float(value) for name, value in metric.compute().items()},
        headline=f"test/{metric.headline}",
        figures={f"test/{name}": figure for name, figure in metric.figures().items()},
        answers=answers,
    )
