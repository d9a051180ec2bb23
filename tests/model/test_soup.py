"""The average of several adapters is one adapter, and its merge is the average of their merges."""

import copy

import pytest
import torch

from finetune.model.base import Base
from finetune.model.lora import TowerLora, attach_lora
from finetune.model.soup import average_adapters
from finetune.model.towers import AlignTowers

IMAGE = TowerLora(rank=3, alpha=5.0, layers=["pointwise", "squeeze_excite", "stem"], whole=["depthwise"])
TEXT = TowerLora(rank=2, alpha=7.0, layers=["attention", "embedding", "projection"], whole=["norm"])
RS = {"use_rslora": True, "alpha": 3.0}


def adapt(checkpoint, image_lora, text_lora, seed=0):
    """A model whose every trained tensor was moved, and these tensors by name."""
    torch.manual_seed(seed)
    towers = AlignTowers(attach_lora(Base.open(checkpoint).load(), image_lora, text_lora), True, 0.01)
    state, names = towers.state_dict(), towers.trained_names()
    with torch.no_grad():
        for name in names:
            state[name].add_((0.02 * torch.rand(state[name].shape)).to(state[name].dtype))
    return towers.model, {name.removeprefix("model."): state[name] for name in names}


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize(
    ("image_lora", "text_lora"),
    [
        pytest.param(IMAGE, TEXT, id="every kind of layer"),
        pytest.param(TowerLora(rank=2, **RS), TowerLora(rank=4, **RS), id="rsLoRA"),
        pytest.param(TowerLora(layers=[], whole=["norm"], train_statistics=True), None, id="no factors"),
        pytest.param(None, TowerLora(rank=2, last_blocks=1), id="text tower"),
    ],
)
def test_merge_of_the_average_is_the_average_of_the_merges(tiny, image_lora, text_lora):
    models, members = zip(*(adapt(tiny, image_lora, text_lora, seed) for seed in range(3)), strict=True)
    soup = average_adapters(Base.open(tiny).load(), models[0].peft_config["default"], members)
    merges = [copy.deepcopy(model).merge_and_unload(safe_merge=True).state_dict() for model in models]
    for name, tensor in soup.merge_and_unload(safe_merge=True).state_dict().items():
        expected = torch.stack([merge[name].double() for merge in merges]).mean(0)
        torch.testing.assert_close(tensor.double(), expected, atol=1e-6, rtol=1e-6)
    base = Base.open(tiny).load().state_dict()
    moved = [name for name in base if not torch.equal(base[name], merges[0][name])]
    assert len(moved) > 3
    assert "temperature" in moved
    assert models[0].peft_config["default"].r == (image_lora or text_lora).rank  # the members' stays as it was


def test_dora_is_refused(tiny):
    model, member = adapt(tiny, None, TowerLora(use_dora=True))
    with pytest.raises(ValueError, match="adapters without magnitudes"):
        average_adapters(Base.open(tiny).load(), model.peft_config["default"], [member, member])


def test_members_of_other_adapters_are_refused(tiny):
    model, member = adapt(tiny, None, TowerLora(layers=["projection"]))
    _, other = adapt(tiny, None, TowerLora(layers=["attention"]))
    with pytest.raises(ValueError, match="trained the same tensors"):
        average_adapters(Base.open(tiny).load(), model.peft_config["default"], [member, other])
    with pytest.raises(ValueError, match="which it does not have"):
        average_adapters(Base.open(tiny).load(), model.peft_config["default"], [other, other])
