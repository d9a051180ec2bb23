"""Weights between a base and what was trained of it (WiSE-FT)."""

from collections.abc import Mapping

from torch import Tensor

from finetune.core.errors import RecipeError


def check_interpolation(interpolation: float, name: str = "interpolation") -> None:
    """Refuses what is no point between base and trained.

    Args:
        interpolation: The number.
        name: What the user calls the number.

    Raises:
        RecipeError: If it is not in [0, 1].
    """
    if not 0 <= interpolation <= 1:
        raise RecipeError(
            f"Expected {name} to be in [0, 1], but got {interpolation}. 0 is the base, 1 is all that was trained."
        )


def interpolate(base: Mapping[str, Tensor], adapted: Mapping[str, Tensor], interpolation: float) -> dict[str, Tensor]:
    """Returns (1 - w) base + w adapted, tensor by tensor (Wortsman et al. 2022, arXiv 2109.01903).

    Computed in float32. A weight w of 0 gives the base's own tensors and 1 the adapted ones, and a tensor in which
    nothing was trained stays the base's, bit for bit. Whole numbers (counters, positions) have no average: they are
    the adapted ones unless w is 0.

    Args:
        base: State dict of the base.
        adapted: State dict of the same names and shapes, adapters merged.
        interpolation: The weight w, in [0, 1].

    Raises:
        RecipeError: If `interpolation` is not in [0, 1].
        ValueError: If the names differ.

    Example:
        >>> import torch
        >>> interpolate({"weight": torch.tensor([0.0, 2.0])}, {"weight": torch.tensor([4.0, 2.0])}, 0.25)
        {'weight': tensor([1., 2.])}
    """
    check_interpolation(interpolation)
    if differing := sorted(base.keys() ^ adapted.keys()):
        raise ValueError(f"Expected both state dicts to have the same names, but got {differing[0]} in one alone.")
    return {name: _between(tensor, adapted[name], interpolation) for name, tensor in base.items()}


def _between(base: Tensor, adapted: Tensor, weight: float) -> Tensor:
    if weight == 0 or base.equal(adapted):
        return base
    if weight == 1 or not base.is_floating_point():
        return adapted
    return ((1 - weight) * base.float() + weight * adapted.float()).to(base.dtype)
