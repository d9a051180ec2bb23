"""The mathematics of weight interpolation against NumPy."""

import re

import numpy as np
import pytest
import torch

from finetune.core.errors import RecipeError
from finetune.core.interpolation import Interpolation
from finetune.model.base import Base
from finetune.model.interpolate import interpolate
from finetune.model.layers import IMAGE, TEXT


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


FALLING = Interpolation(image=(1.0, 0.5), text=(0.1, 0.3))


@pytest.fixture(scope="module")
def tuned(tiny) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A model, and one in which every number is another."""
    base = Base.open(tiny).load().state_dict()
    generator = torch.Generator().manual_seed(1)
    noise = {name: torch.rand(tensor.shape, generator=generator) + 0.5 for name, tensor in base.items()}
    return base, {name: tensor + noise[name].ceil().to(tensor.dtype) for name, tensor in base.items()}


def weight_by_hand(name: str, blocks: dict[str, int]) -> float:
    """The formula in words of its own, for the profile above."""
    if name == "temperature":
        return 0.4
    first, last = (1.0, 0.5) if name.startswith("vision_model.") else (0.1, 0.3)
    found = re.match(r"(vision_model|text_model)\.encoder\.(?:blocks|layer)\.(\d+)\.", name)
    around = 0.0 if ".embeddings." in name else 1.0
    depth = int(found[2]) / (blocks[found[1]] - 1) if found else around
    return (1 - depth) * first + depth * last


def test_weights_go_with_tower_and_depth(tuned, tiny):
    base, adapted = tuned
    config = Base.open(tiny).load().config
    blocks = {
        "vision_model": len(Base.open(tiny).load().vision_model.encoder.blocks),
        "text_model": config.text_config.num_hidden_layers,
    }
    seen = set()
    for name, tensor in interpolate(base, adapted, FALLING).items():
        assert tensor.dtype == base[name].dtype
        if tensor.is_floating_point():
            weight = weight_by_hand(name, blocks)
            expected = np.float32(1 - weight) * base[name].numpy() + np.float32(weight) * adapted[name].numpy()
            np.testing.assert_array_equal(tensor.numpy(), expected, err_msg=name)
            seen.add(round(weight, 6))
    assert {0.1, 0.3, 0.4, 0.5, 1.0} < seen  # embeddings, projection, temperature, and both ends of the image tower


def test_a_tower_at_the_ends_is_the_bases_or_the_adapted_bit_for_bit(tuned):
    base, adapted = tuned
    found = interpolate(base, adapted, Interpolation(image=(0, 0), text=(1, 1)))
    for tower, source in ((IMAGE, base), (TEXT, adapted)):
        names = [name for name in base if tower.owns(name)]
        assert {name: bits(found)[name] for name in names} == {name: bits(source)[name] for name in names}
    assert found["temperature"] == 0.5 * base["temperature"] + 0.5 * adapted["temperature"]


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.3, 0.7, 1.0])
def test_a_profile_of_equal_weights_is_the_number_bit_for_bit(tuned, states, weight):
    for pair in (tuned, states):
        assert bits(interpolate(*pair, Interpolation((weight, weight), (weight, weight)))) == bits(
            interpolate(*pair, weight)
        )


def test_an_only_block_is_the_last_one():
    names = ["text_model.embeddings.word_embeddings.weight", "text_model.encoder.layer.0.output.dense.weight"]
    base, adapted = ({name: torch.full((1,), value) for name in names} for value in (0.0, 1.0))
    found = interpolate(base, adapted, Interpolation((0.0, 0.0), (0.25, 0.75)))
    assert [tensor.item() for tensor in found.values()] == [0.25, 0.75]
