"""Means over seeds, and over tasks, with Student's 95 % interval."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import t


class Mean(NamedTuple):
    """A mean and how well it is known.

    Attributes:
        mean: The mean.
        variance: Variance of the mean; 0 where it is unknown.
        freedom: Degrees of freedom of the variance; 0 where it is unknown.
    """

    mean: float
    variance: float
    freedom: float

    @property
    def half_width(self) -> float:
        """Half the width of Student's 95 % interval; NaN where the variance is unknown."""
        return float(t.ppf(0.975, self.freedom)) * math.sqrt(self.variance) if self.freedom else math.nan

    def describe(self, sign: str = "") -> str:
        """Writes the mean in per cent, with the half-width where there is one.

        Args:
            sign: "+" to show the sign of a change.
        """
        half = "" if math.isnan(self.half_width) else f" ± {100 * self.half_width:.1f}"
        return f"{100 * self.mean:{sign}.1f}{half}"


def mean_of(values: Sequence[float]) -> Mean:
    """Takes the mean over the seeds.

    Args:
        values: One figure a seed, at least one.

    Example:
        >>> mean_of([0.25, 0.5])
        Mean(mean=0.375, variance=0.015625, freedom=1)
    """
    variance = statistics.variance(values) / len(values) if len(values) > 1 else 0.0
    return Mean(statistics.mean(values), variance, len(values) - 1)


def mean_of_means(found: Sequence[Mean]) -> Mean:
    """Takes the mean over tasks. These tasks are all there are, so its variance is that of the seeds alone.

    Degrees of freedom are Welch's and Satterthwaite's (Satterthwaite 1946, Biometrics Bulletin 2).

    Args:
        found: The mean of each task.

    Example:
        >>> mean_of_means([Mean(0.25, 0.01, 2), Mean(0.0, 0.01, 2)])
        Mean(mean=0.125, variance=0.005, freedom=4.0)
    """
    total = sum(each.variance for each in found)
    known = [each for each in found if each.variance]
    freedom = total**2 / sum(each.variance**2 / each.freedom for each in known) if known else 0.0
    return Mean(statistics.mean(each.mean for each in found), total / len(found) ** 2, freedom)
