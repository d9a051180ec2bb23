"""Metrics as functions of how often each unit counts: once each for the value itself, as drawn for its bootstrap."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Figure(Protocol):
    """A metric that can be computed again with units left out or counted several times.

    A unit is what a bootstrap draws: a query, a row.
    """

    @property
    def units(self) -> int:
        """Number of units."""

    def __call__(self, counts: Tensor) -> Tensor:
        """Returns the metric for each of R draws, float shape (R,).

        Args:
            counts: Float tensor of shape (units, R), how often each unit was drawn.
        """


def value(figure: Figure) -> Tensor:
    """Returns the metric itself, a scalar.

    Example:
        >>> value(mean(torch.tensor([0.0, 1.0, 1.0, 1.0])))
        tensor(0.7500)
    """
    return figure(torch.ones(figure.units, 1))[0]


@dataclass(frozen=True)
class MeanOfMeans:
    """The mean within each group, averaged over the groups that occur.

    Args:
        values: Float tensor of shape (N,).
        unit_ids: Int64 tensor of shape (N,), the unit that brings each value, in [0, units); each occurs.
        group_ids: Int64 tensor of shape (N,), the group of each value.

    Example:
        >>> value(MeanOfMeans(torch.tensor([0.0, 1.0, 1.0]), torch.arange(3), torch.tensor([0, 0, 1])))
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
        """The metric of each draw, NaN where nothing was drawn, see `Figure`."""
        counts = counts.to(self.values)[self.unit_ids]
        empty = counts.new_zeros(int(self.group_ids.max()) + 1 if len(self.group_ids) else 1, counts.shape[1])
        sums = empty.index_add(0, self.group_ids, counts * self.values[:, None])
        return (sums / empty.index_add(0, self.group_ids, counts)).nanmean(0)


def mean(values: Tensor) -> MeanOfMeans:
    """Returns the mean over units.

    Args:
        values: Float tensor of shape (units,).
    """
    ids = torch.arange(len(values), device=values.device)
    return MeanOfMeans(values, ids, torch.zeros_like(ids))


@dataclass(frozen=True)
class Median:
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
        """The metric of each draw, see `Figure`."""
        ordered, order = self.values.sort()
        reached = counts.to(ordered)[order].cumsum(0)
        total = reached[-1]
        middle = [(reached <= place).sum(0) for place in (((total - 1) / 2).floor(), (total / 2).floor())]
        return (ordered[middle[0]] + ordered[middle[1]]) / 2


@dataclass(frozen=True)
class MeanAveragePrecision:
    """The average precision of each class, averaged over the classes that occur.

    With the units in the order of their scores for a class, it is the sum of each precision times the recall that is
    gained there, one for each distinct score: scikit-learn's.

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
        """The metric of each draw, NaN where no label was drawn, see `Figure`."""
        return self.by_class(counts).nanmean(0)

    def by_class(self, counts: Tensor) -> Tensor:
        """The average precision of each class for each draw, shape (C, R), NaN for a class that was not drawn.

        Args:
            counts: As for a `Figure`.
        """
        counts = counts.to(self.scores)
        found = [self._of_class(index, counts) for index in range(self.scores.shape[1])]
        return torch.stack(found)

    def _of_class(self, index: int, counts: Tensor) -> Tensor:
        scores, targets = self.scores[:, index].contiguous(), self.targets[:, index]
        thresholds = scores[targets].unique()
        missed = len(thresholds) - torch.searchsorted(thresholds, scores, right=True)  # how many each unit stays below
        empty = counts.new_zeros(len(thresholds) + 1, counts.shape[1])
        hits = empty.index_add(0, missed[targets], counts[targets])[:-1]
        reached = empty.index_add(0, missed, counts)[:-1].cumsum(0)
        return (hits * hits.cumsum(0) / reached.clamp_min(1)).sum(0) / hits.sum(0)
