"""How sure a difference between two models on the same rows is: the paired bootstrap."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap

RESAMPLES = 2000
CONFIDENCE = 0.95


class Difference(NamedTuple):
    """A difference of means, after less before, with its interval.

    Attributes:
        value: The difference itself.
        low: Lower end of the 95 % interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`higher` or `lower` where the interval excludes zero, else `no clear difference`."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "no clear difference"


def paired_difference(before: npt.ArrayLike, after: npt.ArrayLike) -> Difference:
    """Returns the mean difference of two models' values on the same queries, with a bootstrap interval.

    Queries are drawn with replacement, each with both of its values (Efron and Tibshirani 1993, chapter 13: the
    percentile interval, 2,000 draws with a fixed seed). That one model is measured on the rows that the other is
    measured on takes the difficulty of the rows out of the comparison.

    Args:
        before: Values of shape (Q,), as `hits` of a metric returns them.
        after: Values of shape (Q,), in the same order.

    Raises:
        ValueError: If the shapes differ or there is no query.

    Example:
        >>> paired_difference([0, 0, 0, 0], [1, 1, 1, 1]).verdict
        'higher'
        >>> paired_difference([0, 1, 0, 1], [1, 0, 0, 1]).verdict
        'no clear difference'
    """
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    if np.shape(before) != np.shape(after) or differences.ndim != 1 or not len(differences):
        raise ValueError(
            f"Expected before and after to hold a value for each of the same queries, but got shapes "
            f"{np.shape(before)} and {np.shape(after)}."
        )
    value = float(differences.mean())
    if np.ptp(differences) == 0:
        return Difference(value, value, value)
    interval = bootstrap(
        (differences,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        batch=max(1, 10_000_000 // len(differences)),  # draws at a time, 80 MB
        method="percentile",
        rng=0,
    ).confidence_interval
    return Difference(value, float(interval.low), float(interval.high))
