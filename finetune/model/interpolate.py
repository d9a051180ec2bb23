"""Weights between a base and what was trained of it (WiSE-FT)."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from finetune.core.interpolation import Interpolation, check_interpolation
from finetune.model.layers import TOWERS


def interpolate(
    base: Mapping[str, Tensor], adapted: Mapping[str, Tensor], interpolation: float | Interpolation
) -> dict[str, Tensor]:
    """Returns (1 - w) base + w adapted, tensor by tensor (Wortsman et al. 2022, arXiv 2109.01903).

    Computed in float32. A weight w of 0 gives the base's own tensors and 1 the adapted ones, and a tensor in which
    nothing was trained stays the base's, bit for bit. Whole numbers (counters, positions) have no average: they are
    the adapted ones unless w is 0.

    Args:
        base: State dict of the base.
        adapted: State dict of the same names and shapes, adapters merged.
        interpolation: The weight w of all tensors, in [0, 1]; or weights that go with tower and depth, where the names
            are those of `AlignModel`.

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
    weights = _weigh(base, interpolation)
    return {name: _between(tensor, adapted[name], weights[name]) for name, tensor in base.items()}


def _weigh(names: Iterable[str], interpolation: float | Interpolation) -> dict[str, float]:
    """The weight of each tensor."""
    if not isinstance(interpolation, Interpolation):
        return dict.fromkeys(names, interpolation)
    weights = dict.fromkeys(names, interpolation.of_both)
    for tower in TOWERS:
        weights |= {name: interpolation.at(tower.name, depth) for name, depth in tower.depths(weights).items()}
    return weights


def _between(base: Tensor, adapted: Tensor, weight: float) -> Tensor:
    if weight == 0 or base.equal(adapted):
        return base
    if weight == 1 or not base.is_floating_point():
        return adapted
    return ((1 - weight) * base.float() + weight * adapted.float()).to(base.dtype)
