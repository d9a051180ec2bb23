"""The mathematics of weight interpolation against NumPy."""

import numpy as np
import pytest
import torch

from finetune.core.errors import RecipeError
from finetune.model.interpolate import interpolate


@pytest.fixture
def states() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Convolutions, norms, a scalar, a counter, and a tensor that was not trained and holds a negative zero."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"depthwise.weight": (8, 1, 3, 3), "norm.weight": (8,), "norm.running_var": (8,), "temperature": ()}
    base, adapted = (
        {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(2)
    )
    for state, batches in ((base, 3), (adapted, 9)):
        state["norm.num_batches_tracked"] = torch.tensor(batches)
        state["frozen"] = torch.tensor([-0.0, 0.1, 1e-30])
    return base, adapted


def bits(state):
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


def test_the_ends_are_the_base_and_the_adapted_bit_for_bit(states):
    base, adapted = states
    base["norm.weight"][0], adapted["norm.weight"][1] = -0.0, -0.0
    assert bits(interpolate(base, adapted, 0)) == bits(base)
    assert bits(interpolate(base, adapted, 1)) == bits(adapted)


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.7])
def test_between_them_is_the_average_in_float32(states, weight):
    base, adapted = states
    before = bits(base), bits(adapted)
    found = interpolate(base, adapted, weight)
    assert list(found) == list(base)
    for name, tensor in found.items():
        assert tensor.dtype == base[name].dtype
        if tensor.is_floating_point() and name != "frozen":
            expected = np.float32(1 - weight) * base[name].numpy() + np.float32(weight) * adapted[name].numpy()
            np.testing.assert_array_equal(tensor.numpy(), expected)
    assert found["norm.num_batches_tracked"] == 9
    assert (bits(base), bits(adapted)) == before


@pytest.mark.parametrize("weight", [0.1, 0.3, 0.7])
def test_what_was_not_trained_stays_bit_for_bit(states, weight):
    assert bits(interpolate(*states, weight))["frozen"] == bits(states[0])["frozen"]


def test_half_precision_is_averaged_in_float32():
    base, adapted = {"w": torch.full((1,), 2048.0).half()}, {"w": torch.full((1,), 2050.0).half()}
    assert interpolate(base, adapted, 0.9)["w"].item() == 2050.0  # 204.75 + 1845 in half precision is 2049.75 -> 2050
    assert interpolate(base, adapted, 0.9)["w"].dtype == torch.float16


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_beyond_the_ends_is_refused(states, weight):
    with pytest.raises(
        RecipeError, match=rf"Expected interpolation to be in \[0, 1\], but got {weight}\. 0 is the base"
    ):
        interpolate(*states, weight)


def test_other_names_are_refused(states):
    base, adapted = states
    del adapted["frozen"]
    with pytest.raises(ValueError, match="the same names, but got frozen in one alone"):
        interpolate(base, adapted, 0.5)
