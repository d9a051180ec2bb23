"""What the metrics of a table have in common: they observe a model's answers to its rows."""

from abc import ABC, abstractmethod

from torch import Tensor
from torchmetrics import Metric

from finetune.core.types import Answers
from finetune.metrics.statistics import Figure


class RowMetric(Metric, ABC):
    """A metric of a model's answers to rows. Where several processes share the rows, each observes all of them.

    Attributes:
        headline: Name of the figure that speaks for the model where there is room for one.
    """

    headline: str
    full_state_update = False

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)

    @abstractmethod
    def observe(self, answers: Answers) -> None:
        """Takes in the answers to a batch of rows.

        Args:
            answers: What the model says of them.

        Raises:
            ValueError: If the answers lack what the metric needs, or what they hold cannot be measured.
        """

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """Returns all figures of the rows so far, each a scalar."""

    @abstractmethod
    def figures(self) -> dict[str, Figure]:
        """Returns those that a bootstrap can draw from, by the names that `compute` gives them."""


def require(tensor: Tensor | None, name: str) -> Tensor:
    """Returns a tensor of the answers that a metric needs.

    Args:
        tensor: The tensor, None where the model gave none.
        name: The field of `Answers`.

    Raises:
        ValueError: If there is none.
    """
    if tensor is None:
        raise ValueError(f"Expected answers to have {name}, but got none.")
    return tensor
