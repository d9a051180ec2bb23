"""What a name means: kinds of layer, module names, the last blocks, and the fewest modules around them."""

import re

import pytest

from finetune.model.base import Base
from finetune.model.layers import IMAGE, TEXT, TOWERS, enclosing_modules, low_rank_layers, whole_layers
from finetune.model.lora import TowerLora, attach_lora

IMAGE_TENSORS = r"vision_model\..*"
TEXT_TENSORS = r"text_model\.(embeddings|encoder)\..*|text_projection\..*"


@pytest.fixture(scope="module")
def model(tiny):
    return Base.open(tiny).load()


def test_each_tensor_but_the_temperature_belongs_to_one_tower(model, tiny):
    for name in model.state_dict():
        prefix = name.split("_")[0].split(".")[0]
        expected = {"vision": ["image"], "text": ["text"], "temperature": []}[prefix]
        assert [tower.name for tower in TOWERS if tower.owns(name)] == expected
    adapted = attach_lora(Base.open(tiny).load(), TowerLora(rank=2), TowerLora(whole=["projection"]))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    for tower, part in ((IMAGE, ".vision_model."), (TEXT, ".text_")):
        owned = {name for name in trained if tower.owns(name)}
        assert owned == {name for name in trained if part in name}
        assert owned


@pytest.mark.parametrize(
    ("tower", "kind", "pattern"),
    [
        (IMAGE, "depthwise", r"vision_model\..*depthwise_conv\.depthwise_conv\.weight"),
        (IMAGE, "norm", r"vision_model\..*(batchnorm|_bn|_norm)\.(weight|bias)"),
        (IMAGE, "all", IMAGE_TENSORS),
        (IMAGE, "stem", r"vision_model\.embeddings\.convolution\.weight"),
        (TEXT, "norm", r"text_model\..*LayerNorm\.(weight|bias)"),
        (TEXT, "all", TEXT_TENSORS),
        (TEXT, "projection", r"text_projection\.(weight|bias)"),
        (TEXT, "output.dense", r"text_model\..*output\.dense\.(weight|bias)"),
        (TEXT, "text_model.encoder.layer.1", r"text_model\.encoder\.layer\.1\..*"),
        (IMAGE, "depthwise_conv", r"vision_model\..*\.depthwise_conv\..*"),
    ],
)
def test_whole_layers_hold_exactly_these_parameters(model, tower, kind, pattern):
    parameters = {name for name, _ in model.named_parameters()}
    found = {
        f"{layer}.{name}"
        for layer in whole_layers(model, tower, [kind], None)
        for name, _ in model.get_submodule(layer).named_parameters(recurse=False)
    }
    assert found == {name for name in parameters if re.fullmatch(pattern, name)}
    assert found


def test_all_of_both_towers_is_every_parameter_but_pooler_and_temperature(model):
    layers = whole_layers(model, IMAGE, ["all"], None) + whole_layers(model, TEXT, ["all"], None)
    left = {name for name, _ in model.named_parameters() if name.rpartition(".")[0] not in layers}
    assert left == {"temperature", "text_model.pooler.dense.weight", "text_model.pooler.dense.bias"}


def test_last_blocks_hold_for_whole_layers_too(model):
    blocks = len(model.vision_model.encoder.blocks)
    found = whole_layers(model, IMAGE, ["depthwise", "norm"], 2)
    assert {int(name.split(".")[3]) for name in found} == {blocks - 2, blocks - 1}
    assert "text_projection" in whole_layers(model, TEXT, ["all"], 1)


@pytest.mark.parametrize(
    ("image", "text", "expected"),
    [
        (["all"], [], {"vision_model"}),
        ([], ["all"], {"text_model.embeddings", "text_model.encoder", "text_projection"}),
        (["stem"], ["projection"], {"vision_model.embeddings.convolution", "text_projection"}),
        ([], ["attention.self", "text_model.encoder.layer.1"], {"text_model.encoder.layer.0.attention.self"}),
    ],
)
def test_enclosing_modules_are_the_fewest(model, image, text, expected):
    layers = whole_layers(model, IMAGE, image, None) + whole_layers(model, TEXT, text, None)
    found = enclosing_modules(model, layers)
    assert expected <= set(found)
    inside = {name for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    covered = {name for name in inside if any(name == outer or name.startswith(f"{outer}.") for outer in found)}
    assert covered == set(layers)
    assert not any(name.startswith(f"{outer}.") for name in found for outer in found)


@pytest.mark.parametrize("entry", ["depthwise", "norm", "all", "depthwise_conv", "project_bn"])
def test_layers_that_take_no_low_rank_adapter_are_refused(model, entry):
    with pytest.raises(
        ValueError, match=rf"image_lora\.layers .*'{entry}', which do not\. Name it in image_lora\.whole"
    ):
        low_rank_layers(model, IMAGE, [entry], None)


@pytest.mark.parametrize(
    ("tower", "entry", "last_blocks", "message"),
    [
        (IMAGE, "depthwize", None, r"image_lora\.whole .* got 'depthwize'\. Did you mean 'depthwise'"),
        (TEXT, "depthwise", None, r"text_lora\.whole .* got 'depthwise'\. Valid names: .*norm"),
        (TEXT, "pooler", None, r"text_lora\.whole .* got 'pooler'"),
        (IMAGE, "stem", 1, r"image_lora\.whole .* None lies in the last 1 blocks"),
    ],
)
def test_names_that_mean_nothing_are_refused(model, tower, entry, last_blocks, message):
    with pytest.raises(ValueError, match=message):
        whole_layers(model, tower, [entry], last_blocks)


@pytest.mark.parametrize("entry", ["squeeze_excite", "reduce", "vision_model.encoder.blocks.3.squeeze_excite"])
def test_closed_gates_of_align_mini_are_refused_whole_but_not_among_all(entry):
    mini = Base.open("align-mini").load()
    with pytest.raises(ValueError, match=r"image_lora\.whole .* computes the identity there"):
        whole_layers(mini, IMAGE, [entry], None)
    assert whole_layers(mini, IMAGE, ["all"], None)
