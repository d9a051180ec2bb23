"""How far a mean over few rows may be from the truth."""

import math


def standard_error(mean: float, rows: int) -> float:
    """Returns the standard error of a mean of values in [0, 1]: sqrt(p (1 - p) / n).

    It is exact for shares, and the largest there can be for other means (Bhatia and Davis 2000, American Mathematical
    Monthly 107).

    Args:
        mean: p, in [0, 1].
        rows: n, at least 1.

    Example:
        >>> standard_error(0.5, 100)
        0.05
    """
    return math.sqrt(mean * (1 - mean) / rows)
