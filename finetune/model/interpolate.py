"""Weights between a base and what was trained of it (WiSE-FT), and the choice of a point on that line."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from finetune.core.errors import RecipeError

ALPHAS = tuple(step / 10 for step in range(11))
"""What `auto` looks at."""


class Point(NamedTuple):
    """One model between base and trained, and how it did.

    Attributes:
        alpha: 0 is the base, 1 all that was trained.
        target: The metric that training is for, higher is better.
        retention_loss: What is lost elsewhere, as a share of what the base can do there; below 0 for a gain.
        retention_error: Standard error of that, as rows elsewhere are few.
    """

    alpha: float
    target: float
    retention_loss: float
    retention_error: float


def check_alpha(alpha: float, name: str = "alpha") -> None:
    """Refuses what is no point between base and trained.

    Args:
        alpha: The number.
        name: What the user calls it.

    Raises:
        RecipeError: If it is not in [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise RecipeError(
            f"Expected {name} to be in [0, 1], but got {alpha}. 0 is the base, 1 is all that was trained."
        )


def interpolate(base: Mapping[str, Tensor], adapted: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Returns (1 - alpha) base + alpha adapted, tensor by tensor (Wortsman et al. 2022, arXiv 2109.01903).

    Computed in float32. Alpha 0 gives the base's own tensors and 1 the adapted ones, and a tensor in which nothing
    was trained stays the base's, bit for bit. Whole numbers (counters, positions) have no average: they are the
    adapted ones unless alpha is 0.

    Args:
        base: State dict of the base.
        adapted: State dict of the same names and shapes, adapters merged.
        alpha: In [0, 1].

    Raises:
        RecipeError: If alpha is not in [0, 1].
        ValueError: If the names differ.

    Example:
        >>> import torch
        >>> interpolate({"weight": torch.tensor([0.0, 2.0])}, {"weight": torch.tensor([4.0, 2.0])}, 0.25)
        {'weight': tensor([1., 2.])}
    """
    check_alpha(alpha)
    if differing := sorted(base.keys() ^ adapted.keys()):
        raise ValueError(f"Expected both state dicts to have the same names, but got {differing[0]} in one alone.")
    return {name: _between(tensor, adapted[name], alpha) for name, tensor in base.items()}


def _between(base: Tensor, adapted: Tensor, alpha: float) -> Tensor:
    if alpha == 0 or base.equal(adapted):
        return base
    if alpha == 1 or not base.is_floating_point():
        return adapted
    return ((1 - alpha) * base.float() + alpha * adapted.float()).to(base.dtype)


def choose_alpha(
    score: Callable[[float], tuple[float, float, float]], alphas: Iterable[float], max_loss: float
) -> tuple[float, list[Point]]:
    """Chooses the alpha with the best target among those that lose little enough elsewhere.

    Of equal targets the one that loses least is taken, and then the one nearest to the base.

    Args:
        score: Returns target, retention loss and its error of an alpha, see `Point`. It is called once for each.
        alphas: What to look at. With 0 among them there always is a choice, as the base loses nothing.
        max_loss: The largest retention loss allowed.

    Returns:
        The alpha, and the points in the order of `alphas`.

    Raises:
        ValueError: If every alpha loses more.

    Example:
        >>> choose_alpha(lambda alpha: (alpha, alpha**2, 0.01), [0.0, 0.5, 1.0], max_loss=0.3)[0]
        0.5
    """
    curve = [Point(alpha, *score(alpha)) for alpha in alphas]
    allowed = [point for point in curve if point.retention_loss <= max_loss]
    if not allowed:
        raise ValueError(f"Expected an alpha that loses at most {max_loss} elsewhere, but got none. Add 0 to them.")
    best = max(allowed, key=lambda point: (point.target, -point.retention_loss, -point.alpha))
    return best.alpha, curve
