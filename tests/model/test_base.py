import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AlignConfig, AlignModel, AlignTextConfig, AlignVisionConfig
from transformers.utils import logging

from finetune.core.errors import CheckpointError, RecipeError
from finetune.model.base import load_model, load_processor, portable_name, resolve_checkpoint
from finetune.model.mini import MINI, mini_folder

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def tiny() -> AlignModel:
    """An untrained ALIGN of 0.3 million parameters: enough where only files and names matter."""
    config = AlignConfig(
        text_config=AlignTextConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ).to_dict(),
        vision_config=AlignVisionConfig(
            width_coefficient=0.25, depth_coefficient=0.1, image_size=32, hidden_dim=64
        ).to_dict(),
        projection_dim=80,
    )
    return AlignModel(config).eval()


@pytest.fixture(scope="module")
def mini() -> Path:
    return mini_folder()


@pytest.fixture
def folder(tiny: AlignModel, mini: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    tiny.save_pretrained(folder)
    for name in PROCESSOR_FILES:
        shutil.copy(mini / name, folder)
    return folder


@pytest.fixture
def sharded(tiny: AlignModel, folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    tiny.save_pretrained(folder, max_shard_size="500KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_mini_is_found_by_name() -> None:
    assert resolve_checkpoint(MINI) == mini_folder()
    assert portable_name(MINI) == MINI


def test_mini_loads() -> None:
    model = load_model(MINI)
    assert not model.training
    assert model.dtype == torch.float32
    assert model.text_model.config._attn_implementation == "eager"


@pytest.mark.parametrize("layout", ["folder", "sharded"])
def test_a_folder_loads_with_its_tensors(tiny: AlignModel, layout: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(layout)
    assert resolve_checkpoint(str(folder)) == folder
    for name, tensor in load_model(str(folder)).state_dict().items():
        torch.testing.assert_close(tensor, tiny.state_dict()[name], rtol=0, atol=0)


def test_half_precision_opens_as_float32(folder: Path) -> None:
    weights = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit_json(folder / "config.json", dtype="float16")
    assert load_model(str(folder)).dtype == torch.float32


def test_old_position_ids_are_no_fault(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["text_model.embeddings.position_ids"] = torch.arange(512)[None]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_model(str(folder)).dtype == torch.float32


def test_progress_bars_come_back(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logging.enable_progress_bar()  # a run in this process may have left them off
    verbosity = logging.get_verbosity()
    load_model(str(folder))
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled()
    assert logging.get_verbosity() == verbosity


@pytest.mark.parametrize(
    ("fault", "first"),
    [
        ("missing", "text_projection.bias"),
        ("unexpected", "lora.weight"),
        ("mismatched", "text_projection.bias"),
    ],
)
def test_every_tensor_must_fit(folder: Path, fault: str, first: str) -> None:
    weights = load_file(folder / "model.safetensors")
    if fault == "missing":
        del weights[first]
    else:
        weights[first] = torch.zeros(3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"to be exactly those.*got 1 {fault}, the first: .*{first}"):
        load_model(str(folder))


def test_cut_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"to open as an AlignModel, but got: .*Write or download it again"):
        load_model(str(folder))


def test_an_impossible_config_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", projection_dim="wide")
    with pytest.raises(CheckpointError, match=r"to open as an AlignModel, but got: .*projection_dim"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["config.json"], r"to hold config.json, but got none.*save_pretrained"),
        (["model.safetensors"], r"to hold model.safetensors or .*index.json, but got none.*pickled"),
        (["tokenizer.json"], r"to hold tokenizer.json or vocab.txt, but got none.*AlignProcessor"),
        (
            ["preprocessor_config.json", "processor_config.json"],
            r"to hold preprocessor_config.json or processor_config.json, but got none.*AlignProcessor",
        ),
    ],
)
def test_a_missing_file_is_named(folder: Path, files: list[str], message: str) -> None:
    for name in files:
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match=message):
        resolve_checkpoint(str(folder))


def test_an_adapter_is_no_checkpoint(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter_config.json beside it, which would be applied .* again"):
        resolve_checkpoint(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"got an adapter.*finetune export RUN --output DIR"):
        resolve_checkpoint(str(folder))


def test_another_model_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="clip")
    with pytest.raises(CheckpointError, match=r"model_type in .*config.json to be 'align', but got 'clip'"):
        resolve_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", r"to be a JSON object, but got: Expecting"), ("[]", r"config.json to be a JSON object, but got: a list")],
)
def test_a_config_must_be_an_object(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        resolve_checkpoint(str(folder))


@pytest.mark.parametrize(
    "values",
    [
        {"attn_implementation": "somebody/kernel"},
        {"_attn_implementation": "somebody/kernel"},
        {"auto_map": {"AutoModel": "modeling.Model"}},
        {"quantization_config": {"quant_method": "gptq"}},
        {"transformers_weights": "../other.safetensors"},
        {"text_config": {"_attn_implementation_internal": "somebody/kernel"}},
    ],
)
def test_a_config_cannot_reach_out(folder: Path, values: dict[str, object]) -> None:
    edit_json(folder / "config.json", **values)
    with pytest.raises(CheckpointError, match=r"to ask for nothing but ALIGN's own layers, but got '"):
        resolve_checkpoint(str(folder))


def test_a_config_of_transformers_4_is_taken(folder: Path) -> None:
    """4.49 writes whether it chose the attention itself, and which."""
    edit_json(folder / "config.json", _attn_implementation_autoset=True, attn_implementation="eager")
    assert resolve_checkpoint(str(folder)) == folder


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/model.safetensors", "model-\\..\\x.safetensors"])
def test_an_index_cannot_reach_out(sharded: Path, shard: str) -> None:
    edit_json(sharded / "model.safetensors.index.json", weight_map={"temperature": shard})
    with pytest.raises(CheckpointError, match=r"to name files of its own folder"):
        resolve_checkpoint(str(sharded))


def test_an_index_must_be_complete(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"to hold {shard.name}, but got none. Download"):
        resolve_checkpoint(str(sharded))
    edit_json(sharded / "model.safetensors.index.json", weight_map={})
    with pytest.raises(CheckpointError, match=r"to hold a weight_map, but got none"):
        resolve_checkpoint(str(sharded))


def test_a_misspelt_name_finds_its_neighbour(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"a folder or a hub id.*'align_mini', which.*mean 'align-mini'\?"):
        resolve_checkpoint("align_mini")
    with pytest.raises(CheckpointError, match=r"which is no folder. Did you mean '.*/checkpoint'\?"):
        resolve_checkpoint(str(folder.with_name("checkpiont")))
    monkeypatch.chdir(folder.parent.parent)
    hub_closed(monkeypatch, folder.parent)
    with pytest.raises(CheckpointError, match=rf"pass the folder.*mean '{folder.parent.name}/checkpoint'\?"):
        resolve_checkpoint(f"{folder.parent.name}/checkpiont")


def hub_closed(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://localhost:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))


def test_an_unreachable_hub_leaves_two_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_closed(monkeypatch, tmp_path)
    with pytest.raises(CheckpointError, match=r"download it elsewhere and pass the folder, or use align-mini\.$"):
        resolve_checkpoint("kakaobrain/align-base")


def test_a_hub_id_opens_from_the_hub_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789" * 4
    repository = tmp_path / "hub" / "models--owner--name"
    (repository / "snapshots").mkdir(parents=True)
    folder.rename(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / "refs" / "v1").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for hub_id in ("owner/name", "owner/name@v1", f"owner/name@{commit}"):
        assert resolve_checkpoint(hub_id) == repository / "snapshots" / commit
        assert portable_name(hub_id) == hub_id
    assert load_model("owner/name").dtype == torch.float32
    with pytest.raises(CheckpointError, match=r"'owner/name@v2' to be a folder or to be found"):
        resolve_checkpoint("owner/name@v2")


def test_portable_name_of_a_folder_is_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert portable_name("checkpoint") == str(folder.resolve())


def test_processor_keeps_its_own_size() -> None:
    processor = load_processor(MINI)
    pixel_values = processor(images=Image.new("RGB", (50, 30)), return_tensors="pt")["pixel_values"]
    assert type(processor.image_processor).__name__ == "EfficientNetImageProcessorPil"
    assert pixel_values.shape == (1, 3, 224, 224)
    torch.testing.assert_close(pixel_values, torch.full_like(pixel_values, -127 / 128))


def test_processor_resizes_in_proportion(folder: Path) -> None:
    (folder / "processor_config.json").unlink()
    sides = {"size": {"height": 346, "width": 346}, "crop_size": {"height": 289, "width": 289}}
    edit_json(folder / "preprocessor_config.json", **sides)
    for image_size, resized in ((None, 346), (96, 115), (289, 346), (224, 268)):
        image_processor = load_processor(str(folder), image_size).image_processor
        crop = image_size or 289
        assert dict(image_processor.size) == {"height": resized, "width": resized}
        assert dict(image_processor.crop_size) == {"height": crop, "width": crop}
        pixel_values = image_processor(Image.new("RGB", (400, 300)), return_tensors="pt")["pixel_values"]
        assert pixel_values.shape == (1, 3, crop, crop)


def test_processor_without_crop_has_its_resized_side(folder: Path) -> None:
    (folder / "processor_config.json").unlink()
    sides = {"size": {"height": 346, "width": 346}, "crop_size": {"height": 289, "width": 289}}
    edit_json(folder / "preprocessor_config.json", do_center_crop=False, **sides)
    image_processor = load_processor(str(folder), 96).image_processor
    pixel_values = image_processor(Image.new("RGB", (400, 300)), return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 96, 96)


def test_processor_refuses_images_smaller_than_the_tower_can_halve() -> None:
    with pytest.raises(RecipeError, match=r"image_size to be at least 32 pixels, but got 31"):
        load_processor(MINI, 31)


def test_processor_that_does_not_open_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"to open as an AlignProcessor, but got"):
        load_processor(str(folder))


def test_saved_processor_forgets_how_it_was_opened(folder: Path, tmp_path: Path) -> None:
    load_processor(str(folder)).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert saved == json.loads((folder / "tokenizer_config.json").read_text()) | {"processor_class": "AlignProcessor"}
