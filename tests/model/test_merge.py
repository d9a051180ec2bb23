"""Merging is exact, leaves everything else of the base alone, and refuses what would not be exact."""

import copy
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.core.errors import CheckpointError
from finetune.model.adapter import save_adapter
from finetune.model.base import Base
from finetune.model.lora import TowerLora, attach_lora
from finetune.model.merge import merge_adapter
from finetune.model.towers import AlignTowers


@pytest.fixture(scope="module")
def base(tiny) -> Base:
    return Base.open(tiny)


def save(base, folder, image_lora, text_lora, value=0.02):
    """An adapter whose every trained tensor was moved, and the adapted model."""
    model = base.load()
    adapted = attach_lora(model, image_lora, text_lora)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter += value * torch.randn_like(parameter)
    save_adapter(adapted, folder, base)
    return model


def test_merged_tensors_are_base_plus_scaled_product(base, tmp_path):
    adapted = save(base, tmp_path, None, TowerLora(rank=2, alpha=6.0, layers=["projection"]))
    layer = adapted.text_projection
    delta = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double() * 6.0 / 2
    merged = merge_adapter(base, tmp_path).state_dict()
    before = base.state_dict()
    torch.testing.assert_close(
        merged["text_projection.weight"].double(), before["text_projection.weight"].double() + delta, atol=1e-6, rtol=0
    )
    assert all(torch.equal(merged[name], before[name]) for name in before if name != "text_projection.weight")


def test_image_tower_without_adapter_stays_byte_identical(base, tmp_path):
    save(base, tmp_path, None, TowerLora())
    merged = merge_adapter(base, tmp_path).state_dict()
    before = base.state_dict()
    assert list(merged) == list(before)
    vision = [name for name in before if name.startswith("vision_model")]
    assert all(merged[name].numpy().tobytes() == before[name].numpy().tobytes() for name in vision)
    assert any(not torch.equal(merged[name], before[name]) for name in before)


def test_merged_embeddings_equal_the_adapted_ones(base, tmp_path, batch):
    adapted = save(base, tmp_path, TowerLora(), TowerLora())
    merged = merge_adapter(base, tmp_path)
    with torch.no_grad():
        expected = AlignTowers(adapted, False, 0.01)(batch)
        found = AlignTowers(merged, False, 0.01)(batch)
    torch.testing.assert_close(found.image_embeds, expected.image_embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.text_embeds, expected.text_embeds, atol=1e-6, rtol=0)


def test_half_precision_base_is_merged_in_float32(base, tmp_path):
    """Merging in half precision costs 2e-2."""
    half, exact = tmp_path / "half", tmp_path / "exact"
    for folder, dtype in ((half, torch.float16), (exact, torch.float32)):
        shutil.copytree(base.folder, folder)
        weights = {name: tensor.half().to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    merged = {}
    for folder in (half, exact):
        rounded = Base.open(folder)
        save(rounded, folder / "adapter", TowerLora(), TowerLora())
        merged[folder] = merge_adapter(rounded, folder / "adapter").state_dict()
    for name, tensor in merged[half].items():
        assert tensor.dtype == merged[exact][name].dtype
        assert torch.equal(tensor, merged[exact][name]), name


def test_weights_that_are_not_finite_are_refused(base, tmp_path):
    save(base, tmp_path, None, TowerLora(), value=float("nan"))
    with pytest.raises((CheckpointError, ValueError), match="finite|NaN"):
        merge_adapter(base, tmp_path)


@pytest.mark.parametrize(
    "image_lora",
    [
        TowerLora(rank=2),
        TowerLora(whole=["depthwise", "norm"], train_statistics=True),
        TowerLora(rank=2, use_dora=True),
    ],
    ids=["lora", "whole", "dora"],
)
def test_merge_of_the_saved_adapter_is_that_of_plain_peft_in_memory(base, tmp_path, image_lora):
    text_lora = TowerLora(rank=2, use_dora=image_lora.use_dora)
    adapted = attach_lora(base.load(), image_lora, text_lora)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in adapted.state_dict().items():
            if "lora_" in name or ("modules_to_save" in name and tensor.is_floating_point()):
                tensor += 0.02 * torch.rand_like(tensor)
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    copied = copy.deepcopy(adapted).merge_and_unload(safe_merge=True).state_dict()
    save_adapter(adapted, tmp_path, base)
    merged = merge_adapter(base, tmp_path).state_dict()
    assert copied.keys() == merged.keys()
    for name in merged:
        assert torch.equal(copied[name], merged[name]), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.state_dict().items())
