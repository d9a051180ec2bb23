"""Merging is exact, leaves everything else of the base alone, and refuses what would not be exact."""

import pytest
import torch

from finetune.core.errors import CheckpointError
from finetune.model.adapter import save_adapter
from finetune.model.base import load_model
from finetune.model.lora import TowerLora, attach_lora
from finetune.model.merge import merge_adapter, merge_copy
from finetune.model.towers import AlignTowers

FINGERPRINT = "f" * 64


def save(checkpoint, folder, image_lora, text_lora, value=0.02):
    """An adapter whose every trained tensor was moved, and the adapted model."""
    model = load_model(checkpoint)
    adapted = attach_lora(model, image_lora, text_lora)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter += value * torch.randn_like(parameter)
    save_adapter(adapted, folder, "owner/name", FINGERPRINT)
    return model


def test_merged_tensors_are_base_plus_scaled_product(tiny, tmp_path):
    adapted = save(tiny, tmp_path, None, TowerLora(rank=2, alpha=6.0, layers=["projection"]))
    layer = adapted.text_projection
    delta = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double() * 6.0 / 2
    merged = merge_adapter(load_model(tiny), tmp_path, FINGERPRINT).state_dict()
    base = load_model(tiny).state_dict()
    torch.testing.assert_close(
        merged["text_projection.weight"].double(), base["text_projection.weight"].double() + delta, atol=1e-6, rtol=0
    )
    assert all(torch.equal(merged[name], base[name]) for name in base if name != "text_projection.weight")


def test_image_tower_without_adapter_stays_byte_identical(tiny, tmp_path):
    save(tiny, tmp_path, None, TowerLora())
    merged = merge_adapter(load_model(tiny), tmp_path, FINGERPRINT).state_dict()
    base = load_model(tiny).state_dict()
    assert list(merged) == list(base)
    vision = [name for name in base if name.startswith("vision_model")]
    assert all(merged[name].numpy().tobytes() == base[name].numpy().tobytes() for name in vision)
    assert any(not torch.equal(merged[name], base[name]) for name in base)


def test_merged_embeddings_equal_the_adapted_ones(tiny, tmp_path, batch):
    adapted = save(tiny, tmp_path, TowerLora(), TowerLora())
    merged = merge_adapter(load_model(tiny), tmp_path, FINGERPRINT)
    with torch.no_grad():
        expected = AlignTowers(adapted, False, 0.01)(batch)
        found = AlignTowers(merged, False, 0.01)(batch)
    torch.testing.assert_close(found.image_embeds, expected.image_embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.text_embeds, expected.text_embeds, atol=1e-6, rtol=0)


def test_half_precision_base_is_refused(tiny, tmp_path):
    save(tiny, tmp_path, None, TowerLora())
    with pytest.raises(CheckpointError, match="base to be in float32"):
        merge_adapter(load_model(tiny).half(), tmp_path, FINGERPRINT)


def test_weights_that_are_not_finite_are_refused(tiny, tmp_path):
    save(tiny, tmp_path, None, TowerLora(), value=float("nan"))
    with pytest.raises((CheckpointError, ValueError), match="finite|NaN"):
        merge_adapter(load_model(tiny), tmp_path, FINGERPRINT)


@pytest.mark.parametrize(
    "image_lora",
    [
        TowerLora(rank=2),
        TowerLora(whole=["depthwise", "norm"], train_statistics=True),
        TowerLora(rank=2, use_dora=True),
    ],
    ids=["lora", "whole", "dora"],
)
def test_copy_in_memory_is_the_merge_of_the_saved_adapter(tiny, tmp_path, image_lora):
    text_lora = TowerLora(rank=2, use_dora=image_lora.use_dora)
    adapted = attach_lora(load_model(tiny), image_lora, text_lora)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in adapted.state_dict().items():
            if "lora_" in name or ("modules_to_save" in name and tensor.is_floating_point()):
                tensor += 0.02 * torch.rand_like(tensor)
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    copied = merge_copy(adapted).state_dict()
    save_adapter(adapted, tmp_path, "owner/name", FINGERPRINT)
    merged = merge_adapter(load_model(tiny), tmp_path, FINGERPRINT).state_dict()
    assert copied.keys() == merged.keys()
    for name in merged:
        assert torch.equal(copied[name], merged[name]), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.state_dict().items())
