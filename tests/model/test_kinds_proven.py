"""Layers trained whole and statistics that followed, alone and beside low-rank adapters, proven in a fresh process."""

import pytest
import torch
from safetensors.torch import load_file

from finetune.core.files import fingerprint_weights
from finetune.export.merged import export_merged, write_adapter
from finetune.export.proof import write_witness
from finetune.model.base import load_model, load_processor, resolve_checkpoint
from finetune.model.lora import TowerLora, attach_lora
from finetune.model.towers import AlignTowers

NORM = TowerLora(layers=[], whole=["norm"])
ALL = TowerLora(whole=["all"])
ALL_FOLLOWING = TowerLora(whole=["all"], train_statistics=True)
MIXTURE = TowerLora(
    rank=3, layers=["pointwise", "squeeze_excite", "stem"], whole=["depthwise", "norm"], train_statistics=True
)
DORA = TowerLora(use_dora=True, whole=["norm"])
RSLORA = TowerLora(use_rslora=True)


def case(name, image_lora, text_lora, slow=False):
    return pytest.param(image_lora, text_lora, id=name, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(
    ("image_lora", "text_lora"),
    [
        case("depthwise", TowerLora(layers=[], whole=["depthwise"]), None, slow=True),
        case("norm", NORM, NORM, slow=True),
        case("statistics", TowerLora(layers=[], train_statistics=True), None, slow=True),
        case("all of the image tower beside DoRA", ALL_FOLLOWING, TowerLora(use_dora=True)),
        case("all of both", ALL, ALL, slow=True),
        case("mixture", MIXTURE, TowerLora(rank=2, whole=["norm", "embedding"])),
        case("all of the text tower", None, ALL, slow=True),
        case("all with statistics", ALL_FOLLOWING, ALL, slow=True),
        case("rsLoRA and depthwise", TowerLora(use_rslora=True, whole=["depthwise"]), RSLORA, slow=True),
        case("DoRA and norm", DORA, DORA, slow=True),
        case("DoRA and statistics", TowerLora(use_dora=True, train_statistics=True), None, slow=True),
        case("last blocks", TowerLora(whole=["all"], last_blocks=2), TowerLora(whole=["norm"], last_blocks=1), True),
    ],
)
def test_merge_is_proven(tiny, train, batch, tmp_path, image_lora, text_lora):
    torch.manual_seed(0)
    towers = AlignTowers(attach_lora(load_model(tiny), image_lora, text_lora), True, 0.01)
    train(towers)
    write_witness(towers, batch, tmp_path / "witness.safetensors")
    fingerprint = fingerprint_weights(resolve_checkpoint(tiny))
    write_adapter(towers, load_processor(tiny, 64), tmp_path / "adapter", tiny, fingerprint)
    proof = export_merged(tiny, tmp_path / "adapter", tmp_path / "witness.safetensors", tmp_path / "merged")
    assert max(proof["max_abs_difference"].values()) <= 1e-5
    base, merged = load_file(f"{tiny}/model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in merged.items()} == {n: (t.shape, t.dtype) for n, t in base.items()}
    recorded = load_file(tmp_path / "witness.safetensors")
    with torch.no_grad():
        untouched = AlignTowers(load_model(tiny), False, 0.01)(batch)
    for key, lora in (("image_embeds", image_lora), ("text_embeds", text_lora)):
        difference = (getattr(untouched, key) - recorded[key]).abs().max()
        assert difference > 1e-3 if lora else difference == 0
