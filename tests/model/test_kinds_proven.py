"""Layers trained whole and statistics that followed, alone and beside low-rank adapters, proven in a fresh process."""

import pytest
import torch
from safetensors.torch import load_file

from finetune.export.choose_interpolation import Choice
from finetune.export.merged import MergedCheckpoint, write_processor
from finetune.export.trained import TrainedModel
from finetune.export.witness import write_witness
from finetune.model.adapter import save_adapter
from finetune.model.base import Base
from finetune.model.lora import TowerLora, attach_lora
from finetune.model.towers import AlignTowers
from finetune.run.folder import RunFolder

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
        case("all of the image tower beside DoRA", ALL_FOLLOWING, TowerLora(use_dora=True), slow=True),
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
def test_merge_is_proven(tiny, train, batch, opener, tmp_path, image_lora, text_lora):
    torch.manual_seed(0)
    base, run = Base.open(tiny), RunFolder(tmp_path)
    towers = AlignTowers(attach_lora(base.load(), image_lora, text_lora), True, 0.01)
    train(towers)
    write_witness(towers, batch, run.witness)
    for folder in (run.adapter, run.processor):
        folder.mkdir()
    save_adapter(towers.model, run.adapter, base)
    write_processor(base.processor(64), run.processor)
    proof = MergedCheckpoint(TrainedModel(run, base, Choice(1.0))).export(run.merged, "kinds", {}, fresh=opener)
    assert max(proof["max_abs_difference"].values()) <= 1e-5
    before, merged = load_file(f"{tiny}/model.safetensors"), load_file(run.merged / "model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in merged.items()} == {n: (t.shape, t.dtype) for n, t in before.items()}
    recorded = load_file(run.witness)
    with torch.no_grad():
        untouched = AlignTowers(base.load(), False, 0.01)(batch)
    for key, lora in (("image_embeds", image_lora), ("text_embeds", text_lora)):
        difference = (getattr(untouched, key) - recorded[key]).abs().max()
        assert difference > 1e-3 if lora else difference == 0
