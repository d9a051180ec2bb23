"""Metrics as functions of how often each unit counts: once each for the metric itself, as drawn for its bootstrap."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from finetune.core.errors import did_you_mean

CLASSES = 64
"""Classes whose scores are laid out one after the other at a time; taken alone, each has them far apart in memory."""


@dataclass(frozen=True)
class Figure(ABC):
    """A metric that can be computed again with units left out or counted several times.

    A unit is what a bootstrap draws: a query, a row. Each subclass is a dataclass whose fields are tensors.
    """

    @property
    @abstractmethod
    def units(self) -> int:
        """Number of units."""

    @abstractmethod
    def __call__(self, counts: Tensor) -> Tensor:
        """Returns the metric for each of R draws, float shape (R,).

        Args:
            counts: Float tensor of shape (units, R), how often each unit was drawn.
        """

    def point_estimate(self) -> Tensor:
        """Returns the metric itself, a scalar: each unit counts once.

        Example:
            >>> mean(torch.tensor([0.0, 1.0, 1.0, 1.0])).point_estimate()
            tensor(0.7500)
        """
        return self(torch.ones(self.units, 1))[0]


def to_tensors(figure: Figure) -> tuple[str, dict[str, Tensor]]:
    """Returns the kind of a figure and all it is made of, to be stored; `from_tensors` reads it back.

    The tensors are copies on the CPU that share no memory, as safetensors needs them.

    Example:
        >>> to_tensors(Median(torch.tensor([1.0, 3.0])))
        ('Median', {'values': tensor([1., 3.])})
    """
    tensors = {field.name: getattr(figure, field.name) for field in fields(figure)}
    return type(figure).__name__, {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }


def from_tensors(name: str, tensors: Mapping[str, Tensor]) -> Figure:
    """Returns the figure that `to_tensors` took apart.

    Args:
        name: The kind of figure.
        tensors: What it is made of.

    Raises:
        ValueError: If there is no such kind, or it is made of other tensors.
    """
    kinds = {kind.__name__: kind for kind in Figure.__subclasses__()}
    if name not in kinds:
        raise ValueError(f"Expected name to be a kind of figure, but got {name!r}. {did_you_mean(name, kinds)}")
    expected = [field.name for field in fields(kinds[name])]
    if sorted(expected) != sorted(tensors):
        raise ValueError(
            f"Expected the tensors of {name} to be {', '.join(expected)}, but got {', '.join(tensors) or 'none'}."
        )
    return kinds[name](**tensors)


@dataclass(frozen=True)
class MeanOfMeans(Figure):
    """The mean within each group, averaged over the groups that occur.

    Args:
        values: Float tensor of shape (N,).
        unit_ids: Int64 tensor of shape (N,), the unit that brings each value, in [0, units); each occurs.
        group_ids: Int64 tensor of shape (N,), the group of each value.

    Example:
        >>> MeanOfMeans(torch.tensor([0.0, 1.0, 1.0]), torch.arange(3), torch.tensor([0, 0, 1])).point_estimate()
        tensor(0.7500)
    """

    values: Tensor
    unit_ids: Tensor
    group_ids: Tensor

    @property
    def units(self) -> int:
        """Number of units."""
        return int(self.unit_ids.max()) + 1 if len(self.unit_ids) else 0

    def __call__(self, counts: Tensor) -> Tensor:
        """Returns the metric of each draw, NaN where nothing was drawn, see `Figure`."""
        counts = counts.to(self.values)[self.unit_ids]
        empty = counts.new_zeros(int(self.group_ids.max()) + 1 if len(self.group_ids) else 1, counts.shape[1])
        sums = empty.index_add(0, self.group_ids, counts * self.values[:, None])
        return (sums / empty.index_add(0, self.group_ids, counts)).nanmean(0)


def standard_error(share: float, units: int) -> float:
    """Returns the standard error of a mean of values in [0, 1], sqrt(p (1 - p) / n).

    Shares have exactly that error, and no other mean has a larger one (Bhatia and Davis 2000, American Mathematical
    Monthly 107).

    Args:
        share: The mean p; what lies outside of [0, 1] counts as the nearer end.
        units: n, how many values there are.

    Example:
        >>> standard_error(0.5, 100)
        0.05
    """
    share = min(max(share, 0.0), 1.0)
    return math.sqrt(share * (1 - share) / units)


def mean(values: Tensor) -> MeanOfMeans:
    """Returns the mean over units.

    Args:
        values: Float tensor of shape (units,).
    """
    ids = torch.arange(len(values), device=values.device)
    return MeanOfMeans(values, ids, torch.zeros_like(ids))


@dataclass(frozen=True)
class Median(Figure):
    """The median over units; of an even number the mean of the two in the middle.

    Args:
        values: Float tensor of shape (units,).
    """

    values: Tensor

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.values)

    def __call__(self, counts: Tensor) -> Tensor:
        """Returns the metric of each draw, see `Figure`."""
        ordered, order = self.values.sort()
        reached = counts.to(ordered)[order].cumsum(0)
        total = reached[-1]
        middle = [(reached <= place).sum(0) for place in (((total - 1) / 2).floor(), (total / 2).floor())]
        return (ordered[middle[0]] + ordered[middle[1]]) / 2


@dataclass(frozen=True)
class MeanAveragePrecision(Figure):
    """The average precision of each class, averaged over the classes that occur.

    As in scikit-learn, it sums, over the distinct scores of a class from the highest down, the precision reached there
    times the recall gained.

    Args:
        scores: Float tensor of shape (units, C), higher is better.
        targets: Bool tensor of shape (units, C), true where a unit has a label.
    """

    scores: Tensor
    targets: Tensor

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.scores)

    def __call__(self, counts: Tensor) -> Tensor:
        """Returns the metric of each draw, NaN where no label was drawn, see `Figure`."""
        return self.by_class(counts).nanmean(0)

    def by_class(self, counts: Tensor) -> Tensor:
        """Returns the average precision of each class for each draw, shape (C, R), NaN for a class that was not drawn.

        Args:
            counts: As for a `Figure`.
        """
        counts = counts.to(self.scores)
        found = []
        for block in zip(self.scores.split(CLASSES, dim=1), self.targets.split(CLASSES, dim=1), strict=True):
            scores, targets = (part.T.contiguous() for part in block)
            found += [self._of_class(*pair, counts) for pair in zip(scores, targets, strict=True)]
        return torch.stack(found)

    @staticmethod
    def _of_class(scores: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        thresholds = scores[targets].unique()
        missed = len(thresholds) - torch.searchsorted(thresholds, scores, right=True)  # how many each unit stays below
        empty = counts.new_zeros(len(thresholds) + 1, counts.shape[1])
        hits = empty.index_add(0, missed[targets], counts[targets])[:-1]
        reached = empty.index_add(0, missed, counts)[:-1].cumsum(0)
        return (hits * hits.cumsum(0) / reached.clamp_min(1)).sum(0) / hits.sum(0)
