"""The paired bootstrap says how sure a difference between two models on the same rows is."""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune.metrics.statistics import Figure

RESAMPLES = 2000
CONFIDENCE = 0.95
COUNTS = 10_000_000
"""Counts of units that memory holds at a time: 40 MB."""


class Difference(NamedTuple):
    """How much a metric differs, after less before, with its interval.

    Attributes:
        value: The difference itself.
        low: Lower end of the 95 % interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """The standard error of a normal distribution whose interval is as wide."""
        return (self.high - self.low) / (2 * NormalDist().inv_cdf((1 + CONFIDENCE) / 2))

    @property
    def verdict(self) -> str:
        """`higher` or `lower` where the interval excludes zero, else `no clear difference`."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "no clear difference"


def paired_difference(before: Figure, after: Figure) -> Difference:
    """Returns the difference of a metric between two models on the same units, with a bootstrap interval.

    Each draw takes units (queries, rows) with replacement, each with what both models make of it, and computes the
    metric again (Efron and Tibshirani 1993, chapter 13: the percentile interval, here of 2,000 draws with a fixed
    seed). Both models are measured on the same rows, so the difficulty of the rows drops out of the comparison. A draw
    for which the metric is not defined, such as one without a labelled row, is left out.

    Args:
        before: The metric of one model.
        after: The same metric of another one, its units in the same order.

    Raises:
        ValueError: If the numbers of units differ, or there are no units.

    Example:
        >>> import torch
        >>> from finetune.metrics.statistics import mean
        >>> paired_difference(mean(torch.zeros(4)), mean(torch.ones(4))).verdict
        'higher'
        >>> paired_difference(mean(torch.tensor([0.0, 1.0])), mean(torch.tensor([1.0, 0.0]))).verdict
        'no clear difference'
    """
    units = before.units
    if units != after.units or not units:
        raise ValueError(
            f"Expected before and after to be of the same queries, but got {units} and {after.units} of them."
        )

    def difference(counts: Tensor) -> npt.NDArray[np.float64]:
        return (after(counts).double() - before(counts).double()).cpu().numpy()

    value = float(difference(torch.ones(units, 1))[0])
    generator = np.random.default_rng(0)
    draws = [difference(_count(generator, units, part)) for part in _parts(units)]
    low, high = np.nanquantile(np.concatenate(draws), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Difference(value, float(low), float(high))


def _parts(units: int) -> list[int]:
    """Splits the draws into parts of at most `COUNTS` counts."""
    most = max(1, COUNTS // units)
    return [min(most, RESAMPLES - start) for start in range(0, RESAMPLES, most)]


def _count(generator: np.random.Generator, units: int, draws: int) -> Tensor:
    """Draws all units with replacement, several times: how often each came, float32 of shape (units, draws)."""
    drawn = generator.integers(0, units, (units, draws)) * draws + np.arange(draws)
    return torch.from_numpy(np.bincount(drawn.ravel(), minlength=units * draws).reshape(units, draws)).float()
