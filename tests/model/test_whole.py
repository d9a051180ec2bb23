"""Layers trained whole: what was named changes and nothing else, is saved, read back and merged."""

import re

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AlignModel

from finetune.core.errors import CheckpointError
from finetune.model.adapter import load_adapter, save_adapter
from finetune.model.base import Base
from finetune.model.lora import TowerLora, attach_lora
from finetune.model.merge import merge_adapter
from finetune.model.towers import AlignTowers

DEPTHWISE = r"vision_model\..*depthwise_conv\.depthwise_conv\.weight"
IMAGE_NORM = r"vision_model\..*(batchnorm|_bn|_norm)\.(weight|bias)"
TEXT_NORM = r"text_model\..*LayerNorm\.(weight|bias)"
IMAGE_ALL = r"vision_model\..*\.(weight|bias)"
TEXT_ALL = r"(text_model\.(embeddings|encoder)\..*|text_projection)\.(weight|bias)"
STATISTICS = r"vision_model\..*\.(running_mean|running_var|num_batches_tracked)"
EVERYTHING = (TowerLora(whole=["all"], train_statistics=True), TowerLora(whole=["all"]))


def build(checkpoint, image_lora, text_lora) -> AlignTowers:
    return AlignTowers(attach_lora(Base.open(checkpoint).load(), image_lora, text_lora), True, 0.01)


@pytest.mark.parametrize(
    ("image_lora", "text_lora", "pattern"),
    [
        (TowerLora(layers=[], whole=["depthwise"]), None, DEPTHWISE),
        (TowerLora(layers=[], whole=["norm"]), None, IMAGE_NORM),
        (TowerLora(layers=[], train_statistics=True), None, STATISTICS),
        (TowerLora(layers=[], whole=["norm"], train_statistics=True), None, f"{IMAGE_NORM}|{STATISTICS}"),
        (TowerLora(whole=["all"]), None, IMAGE_ALL),
        (None, TowerLora(layers=[], whole=["norm"]), TEXT_NORM),
        (*EVERYTHING, f"{IMAGE_ALL}|{TEXT_ALL}|{STATISTICS}"),
        (TowerLora(whole=["depthwise"]), TowerLora(whole=["norm"]), f"{DEPTHWISE}|{TEXT_NORM}"),
    ],
)
def test_training_changes_what_was_named_and_nothing_else(tiny, train, weights, image_lora, text_lora, pattern):
    towers = build(tiny, image_lora, text_lora)
    before = weights(Base.open(tiny).load())
    assert weights(towers.align) == before
    train(towers.train())
    after = weights(towers.align)
    changed = {name for name in before if after[name] != before[name]}
    wanted = {name for name in before if re.fullmatch(pattern, name)}
    assert changed <= wanted | {"temperature"}
    without_gradient = {name for name in wanted if name.endswith("key.bias")}  # softmax does not see it
    assert wanted - without_gradient <= changed
    originals = {
        name.replace(".original_module", ""): tensor.numpy().tobytes()
        for name, tensor in towers.align.state_dict().items()
        if ".original_module" in name
    }
    assert all(before[name] == original for name, original in originals.items())


def test_only_what_was_named_has_a_gradient(tiny):
    towers = build(tiny, TowerLora(layers=[], whole=["depthwise"], train_statistics=True), None)
    trained = [name for name, parameter in towers.align.named_parameters() if parameter.requires_grad]
    assert {name.replace(".modules_to_save.default", "") for name in trained if name != "temperature"} == {
        name for name, _ in Base.open(tiny).load().named_parameters() if re.fullmatch(DEPTHWISE, name)
    }


def test_whole_layers_take_no_low_rank_adapter(tiny):
    towers = build(tiny, TowerLora(whole=["all"], last_blocks=2), None)
    assert not any("lora_" in name for name, _ in towers.named_parameters())
    blocks = towers.align.vision_model.encoder.blocks
    assert {type(block).__name__ for block in blocks} == {"AlignVisionBlock"}
    assert {name.rsplit(".", 1)[0] for name in towers.model.peft_config["default"].modules_to_save} == {
        f"vision_model.encoder.blocks.{len(blocks) - 2}",
        f"vision_model.encoder.blocks.{len(blocks) - 1}",
    }
    with pytest.raises(ValueError, match=r"image_lora\.layers and image_lora\.whole to name different layers.*in both"):
        build(tiny, TowerLora(layers=["pointwise"], whole=["all"]), None)


def test_variants_need_not_agree_where_one_tower_has_no_low_rank_part(tiny):
    towers = build(tiny, TowerLora(whole=["all"]), TowerLora(use_dora=True, rank=3))
    layer = towers.align.text_projection
    assert layer.use_dora["default"]
    assert layer.r["default"] == 3


def test_statistics_of_the_text_tower_are_refused(tiny):
    with pytest.raises(ValueError, match=r"text_lora\.train_statistics to be false, but got true.*has no BatchNorm"):
        build(tiny, None, TowerLora(train_statistics=True))


@pytest.mark.parametrize("arguments", [{"layers": []}, {"layers": [], "whole": []}])
def test_nothing_to_train_is_refused(arguments):
    with pytest.raises(ValueError, match=r"layers to name at least one layer, but got \[\]"):
        TowerLora(**arguments)


@pytest.fixture(
    scope="module",
    params=[
        EVERYTHING,
        (
            TowerLora(rank=2, whole=["depthwise", "norm"], train_statistics=True),
            TowerLora(rank=3, whole=["norm"], use_dora=False),
        ),
    ],
    ids=["everything", "mixture"],
)
def saved(request, tiny, train, batch, tmp_path_factory):
    """An adapter folder after training, and the trained model's embeddings."""
    folder = tmp_path_factory.mktemp("adapter")
    towers = build(tiny, *request.param)
    train(towers)
    save_adapter(towers.model, folder, Base.open(tiny))
    with torch.no_grad():
        return folder, towers.eval()(batch)


def assert_equal(found, expected):
    assert torch.equal(found.image_features, expected.image_features)
    assert torch.equal(found.text_features, expected.text_features)


def test_plain_peft_restores_the_embeddings(tiny, saved, batch):
    folder, expected = saved
    plain = peft.PeftModel.from_pretrained(AlignModel.from_pretrained(tiny), folder)
    with torch.no_grad():
        found = plain(pixel_values=batch.pixel_values, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        untouched = AlignModel.from_pretrained(tiny).get_image_features(batch.pixel_values).pooler_output
    torch.testing.assert_close(found.image_embeds, expected.image_embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.text_embeds, expected.text_embeds, atol=1e-6, rtol=0)
    assert (untouched - expected.image_features).abs().max() > 1e-2


def test_load_adapter_restores_the_embeddings(tiny, saved, batch):
    folder, expected = saved
    with torch.no_grad():
        assert_equal(AlignTowers(load_adapter(Base.open(tiny), folder), False, 0.01)(batch), expected)


def test_merged_model_is_the_adapted_one(tiny, saved, batch):
    folder, expected = saved
    merged = merge_adapter(Base.open(tiny), folder)
    base = Base.open(tiny).load().state_dict()
    assert [(n, t.shape, t.dtype) for n, t in merged.state_dict().items()] == [
        (n, t.shape, t.dtype) for n, t in base.items()
    ]
    with torch.no_grad():
        found = AlignTowers(merged, False, 0.01)(batch)
    torch.testing.assert_close(found.image_embeds, expected.image_embeds, atol=2e-6, rtol=0)
    torch.testing.assert_close(found.text_embeds, expected.text_embeds, atol=2e-6, rtol=0)


def assert_refused(tiny, folder, target, change, message):
    """Merging is refused with `message` once `change` has been made to the adapter's tensors."""
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    path = target / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=message):
        merge_adapter(Base.open(tiny), target)


@pytest.mark.parametrize(
    "name",
    [
        "vision_model.embeddings.batchnorm.running_mean",
        "text_model.embeddings.LayerNorm.bias",
        "vision_model.encoder.blocks.1.depthwise_conv.depthwise_conv.weight",
    ],
)
def test_missing_whole_tensors_are_refused(tiny, saved, tmp_path, name):
    name = f"base_model.model.{name}"
    message = f"1 are missing, among them {re.escape(name)}"
    assert_refused(tiny, saved[0], tmp_path, lambda tensors: tensors.pop(name), message)


def test_unexpected_whole_tensors_are_refused(tiny, saved, tmp_path):
    name = "base_model.model.text_model.pooler.dense.weight"
    message = f"1 are unexpected, among them {re.escape(name)}"
    assert_refused(tiny, saved[0], tmp_path, lambda tensors: tensors.update({name: torch.zeros(32, 32)}), message)


def test_whole_tensors_of_another_shape_are_refused(tiny, saved, tmp_path):
    name = "base_model.model.vision_model.embeddings.batchnorm.weight"
    message = f"1 are of another shape, among them {re.escape(name)}"
    assert_refused(tiny, saved[0], tmp_path, lambda tensors: tensors.update({name: torch.zeros(1)}), message)


def test_trained_names_are_all_that_a_checkpoint_must_keep(tiny, train, batch):
    arguments = (TowerLora(rank=2, whole=["depthwise"], train_statistics=True), TowerLora(whole=["norm"]))
    trained = build(tiny, *arguments)
    train(trained)
    kept = {name: tensor for name, tensor in trained.state_dict().items() if name in trained.trained_names()}
    torch.manual_seed(5)
    fresh = build(tiny, *arguments)
    assert not fresh.load_state_dict(kept, strict=False).unexpected_keys
    with torch.no_grad():
        assert_equal(fresh.eval()(batch), trained.eval()(batch))
    assert len(kept) < len(trained.state_dict()) / 2
