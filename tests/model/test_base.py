import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AlignConfig, AlignModel, AlignTextConfig, AlignVisionConfig
from transformers.utils import logging

from finetune.core.errors import CheckpointError, RecipeError
from finetune.model.base import Base, open_image_processor, open_processor
from finetune.model.mini import FINGERPRINT, MINI, open_mini

from ..fingerprints import fingerprint_weights

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
    return open_mini()[0]


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


@pytest.fixture
def half(folder: Path) -> Path:
    weights = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit_json(folder / "config.json", dtype="float16")
    return folder


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_mini_is_found_by_name() -> None:
    base = Base.open(MINI)
    assert (base.name, base.folder) == (MINI, open_mini()[0])
    assert Base.open(Path(MINI)).folder == base.folder
    assert repr(base) == "Base('align-mini')"


def test_mini_loads() -> None:
    model = Base.open(MINI).load()
    assert not model.training
    assert model.dtype == torch.float32
    assert model.text_model.config._attn_implementation == "eager"


@pytest.mark.parametrize("layout", ["folder", "sharded"])
def test_a_folder_loads_with_its_tensors(tiny: AlignModel, layout: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(layout)
    assert Base.open(folder).folder == folder
    for name, tensor in Base.open(folder).load().state_dict().items():
        torch.testing.assert_close(tensor, tiny.state_dict()[name], rtol=0, atol=0)


def test_half_precision_opens_as_float32(half: Path) -> None:
    base = Base.open(half)
    assert base.load().dtype == torch.float32
    assert base.tensors["text_projection.weight"].dtype == torch.float16


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("kakaobrain/align-base", "kakaobrain/align-base"),  # as transformers 4 recorded it
        (None, "sha256:"),
        ("", "sha256:"),
        ("/home/someone/align", "sha256:"),
        ("./models/align", "sha256:"),
        ("owner/checkpoint", "sha256:"),  # where it lies, and not a hub id
        (7, "sha256:"),
    ],
)
def test_a_folder_is_named_by_what_it_is_and_never_by_where_it_lies(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: object, expected: str
) -> None:
    (tmp_path / "owner").mkdir()
    folder = folder.rename(tmp_path / "owner" / "checkpoint")
    edit_json(folder / "config.json", _name_or_path=origin)
    monkeypatch.chdir(tmp_path)
    for named in (folder, "owner/checkpoint"):  # which reads like a hub id
        base = Base.open(named)
        found = base.public_name
        assert found == (expected if expected != "sha256:" else f"sha256:{fingerprint_weights(folder)[:12]}")


@pytest.mark.parametrize("name", [MINI, "owner/name", "owner/name@v1"])
def test_what_is_no_folder_keeps_its_name(folder: Path, name: str) -> None:
    assert Base(name, folder).public_name == name


def test_a_base_is_opened_once_and_passed_on(folder: Path) -> None:
    base = Base.open(folder)
    assert Base.open(base) is base
    assert Base.open(str(folder)).tensors["text_projection.bias"].equal(base.tensors["text_projection.bias"])


def test_each_model_is_fresh(folder: Path) -> None:
    base = Base.open(folder)
    before = {name: tensor.clone() for name, tensor in base.tensors.items()}
    first, second = base.load(), base.load()
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    torch.stack([parameter.add(1).square().sum() for parameter in first.parameters()]).sum().backward()
    optimizer.step()
    first.train().get_image_features(torch.randn(2, 3, 32, 32))  # BatchNorm writes to its running statistics
    changed = {name for name, tensor in first.state_dict().items() if not tensor.equal(before[name])}
    assert changed == before.keys()
    for state in (base.tensors, base.state_dict(), second.state_dict(), base.load().state_dict()):
        assert all(tensor.equal(before[name]) for name, tensor in state.items())


@pytest.mark.parametrize("layout", ["folder", "sharded", "half"])
def test_state_dict_is_that_of_a_model(layout: str, request: pytest.FixtureRequest) -> None:
    base = Base.open(request.getfixturevalue(layout))
    expected, random = base.load().state_dict(), torch.get_rng_state()
    found = base.state_dict()
    assert list(found) == list(expected)
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert tensor.equal(expected[name])
        assert tensor.data_ptr() != expected[name].data_ptr()
        is_shared = tensor.data_ptr() == base.tensors[name].data_ptr()
        assert is_shared == (layout != "half")
    assert torch.get_rng_state().equal(random)


def test_tensors_under_older_names_find_their_place(folder: Path) -> None:
    """Before version 5 BERT's norms had a gamma and a beta; transformers renames them."""
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    base = Base.open(folder)
    for state in (base.state_dict(), base.load().state_dict()):
        assert state.keys() == weights.keys()
        assert all(tensor.equal(weights[name]) for name, tensor in state.items())


@pytest.mark.parametrize("layout", ["folder", "sharded", "half"])
def test_fingerprint_is_that_of_the_files(layout: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(layout)
    assert Base.open(folder).fingerprint == fingerprint_weights(folder)


def test_fingerprint_does_not_depend_on_how_tensors_are_spread(folder: Path, tiny: AlignModel) -> None:
    whole = Base.open(folder).fingerprint
    (folder / "model.safetensors").unlink()
    tiny.save_pretrained(folder, max_shard_size="500KB")
    assert Base.open(folder).fingerprint == whole


def test_weights_are_opened_once(folder: Path, count_opens: Callable[[Path], Callable[[], int]]) -> None:
    opens = count_opens(folder / "model.safetensors")
    base = Base.open(folder)
    assert opens() == 0
    base.load()
    assert opens() == 1
    assert base.fingerprint
    base.load()
    base.state_dict()
    base.processor()
    copy.deepcopy(base).load()
    assert opens() == 1
    Base.open(folder).load()
    assert opens() == 2


def test_weights_of_several_files_are_opened_once(
    sharded: Path, count_opens: Callable[[Path], Callable[[], int]]
) -> None:
    opens = [count_opens(shard) for shard in sharded.glob("model-*.safetensors")]
    base = Base.open(sharded)
    base.load()
    assert base.fingerprint
    base.load()
    assert [count() for count in opens] == [1] * len(opens)


def test_mini_is_read_once(
    count_opens: Callable[[Path], Callable[[], int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is opened when its hash is checked."""
    folder = open_mini()[0]
    shutil.copytree(folder, tmp_path / folder.name)
    monkeypatch.setenv("ALIGN_FINETUNE_CACHE", str(tmp_path))
    opens = count_opens(tmp_path / folder.name / "model.safetensors")
    base = Base.open(MINI)
    base.load()
    assert base.fingerprint == FINGERPRINT
    base.load()
    assert opens() == 1


def test_a_pickled_base_is_its_name(folder: Path) -> None:
    base = Base.open(folder)
    assert base.fingerprint  # the weights are open
    pickled = pickle.dumps(base)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    assert (again.name, again.folder, again.fingerprint) == (base.name, base.folder, base.fingerprint)


def test_old_position_ids_are_no_fault(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["text_model.embeddings.position_ids"] = torch.arange(512)[None]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert Base.open(folder).load().dtype == torch.float32


def test_progress_bars_come_back(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logging.enable_progress_bar()  # a run in this process may have left them off
    verbosity = logging.get_verbosity()
    Base.open(folder).load()
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
    base = Base.open(folder)
    for read in (base.load, base.state_dict) if fault == "missing" else (base.load,):
        with pytest.raises(CheckpointError, match=rf"to be exactly those.*got 1 {fault}, the first: .*{first}"):
            read()


def test_cut_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    base = Base.open(folder)
    for read in (base.load, base.state_dict, lambda: base.tensors, lambda: base.fingerprint):
        with pytest.raises(CheckpointError, match=r"to open as an AlignModel, but got: .*Write or download it again"):
            read()


def test_cut_weights_of_several_files_are_refused(sharded: Path) -> None:
    path = max(sharded.glob("model-*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"to open as an AlignModel, but got: .*Write or download it again"):
        Base.open(sharded).load()


def test_an_impossible_config_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", projection_dim="wide")
    for read in (Base.open(folder).load, Base.open(folder).state_dict):
        with pytest.raises(CheckpointError, match=r"to open as an AlignModel, but got: .*projection_dim"):
            read()


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
        Base.open(folder)


def test_an_adapter_is_no_checkpoint(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter_config.json beside it, which would be applied .* again"):
        Base.open(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"got an adapter.*finetune export RUN --output DIR"):
        Base.open(folder)


def test_another_model_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="clip")
    with pytest.raises(CheckpointError, match=r"model_type in .*config.json to be 'align', but got 'clip'"):
        Base.open(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", r"to be a JSON object, but got: Expecting"), ("[]", r"config.json to be a JSON object, but got: a list")],
)
def test_a_config_must_be_an_object(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        Base.open(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"attn_implementation": "somebody/kernel"},
        {"_attn_implementation": "somebody/kernel"},
        {"auto_map": {"AutoModel": "modeling.Model"}},
        {"quantization_config": {"quant_method": "gptq"}},
        {"transformers_weights": "../other.safetensors"},
        {"text_config": {"_attn_implementation_internal": "somebody/kernel"}},
        {"more": [{"auto_map": {"AutoModel": "modeling.Model"}}]},
    ],
)
def test_a_config_cannot_reach_out(folder: Path, values: dict[str, object]) -> None:
    edit_json(folder / "config.json", **values)
    with pytest.raises(CheckpointError, match=r"to ask for nothing but ALIGN's own layers, but got '"):
        Base.open(folder)


@pytest.mark.parametrize("name", ["processor_config.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    "values",
    [
        {"auto_map": {"AutoProcessor": "evil.Processor"}},
        {"auto_map": {"AutoTokenizer": ["somebody/code--evil.Tokenizer", None]}},
        {"image_processor": {"auto_map": {"AutoImageProcessor": "evil.Processor"}}},
        {"tokenizer_file": "../../tokenizer.json"},
        {"vocab_file": "/etc/passwd"},
    ],
)
def test_a_processor_cannot_reach_out(folder: Path, name: str, values: dict[str, object]) -> None:
    (folder / "evil.py").write_text("from pathlib import Path\n\nPath(__file__).with_name('marker').touch()\n")
    if not (folder / name).is_file():
        (folder / name).write_text("{}")
    edit_json(folder / name, **values)
    for opened in (Base.open, open_processor, open_image_processor):
        with pytest.raises(CheckpointError, match=rf"Expected .*{name} to describe a processor of transformers"):
            opened(folder)
    assert not (folder / "marker").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"projection_dim": 10**12}, "'projection_dim': 1000000000000, more than 100,000,000"),
        ({"text_config": {"num_hidden_layers": 10**6}}, "'num_hidden_layers': 1000000, more than 1,000"),
        ({"vision_config": {"hidden_dim": float("inf")}}, "'hidden_dim': inf, more than"),
    ],
)
def test_a_config_cannot_fill_the_memory(folder: Path, values: dict[str, object], message: str) -> None:
    edit_json(folder / "config.json", **values)
    with pytest.raises(CheckpointError, match=message):
        Base.open(folder)


def test_a_config_cannot_be_too_deep_to_read(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(CheckpointError, match="to be a JSON object, but got: maximum recursion depth"):
        Base.open(folder)


def test_a_config_of_transformers_4_is_taken(folder: Path) -> None:
    """4.49 writes whether it chose the attention itself, and which."""
    edit_json(folder / "config.json", _attn_implementation_autoset=True, attn_implementation="eager")
    assert Base.open(folder).folder == folder


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/model.safetensors", "model-\\..\\x.safetensors"])
def test_an_index_cannot_reach_out(sharded: Path, shard: str) -> None:
    edit_json(sharded / "model.safetensors.index.json", weight_map={"temperature": shard})
    with pytest.raises(CheckpointError, match=r"to name files of its own folder"):
        Base.open(sharded)


def test_an_index_must_be_complete(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"to hold {shard.name}, but got none. Download"):
        Base.open(sharded)
    edit_json(sharded / "model.safetensors.index.json", weight_map={})
    with pytest.raises(CheckpointError, match=r"to hold a weight_map, but got none"):
        Base.open(sharded)


def test_a_misspelt_name_finds_its_neighbour(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"a folder or a hub id.*'align_mini', which.*mean 'align-mini'\?"):
        Base.open("align_mini")
    with pytest.raises(CheckpointError, match=r"which is no folder. Did you mean '.*/checkpoint'\?"):
        Base.open(str(folder.with_name("checkpiont")))
    monkeypatch.chdir(folder.parent.parent)
    hub_closed(monkeypatch, folder.parent)
    with pytest.raises(CheckpointError, match=rf"pass the folder.*mean '{folder.parent.name}/checkpoint'\?"):
        Base.open(f"{folder.parent.name}/checkpiont")


def hub_closed(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://localhost:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))


def test_an_unreachable_hub_leaves_two_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_closed(monkeypatch, tmp_path)
    with pytest.raises(CheckpointError, match=r"download it elsewhere and pass the folder, or use align-mini\.$"):
        Base.open("kakaobrain/align-base")


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
        base = Base.open(hub_id)
        assert base.folder == repository / "snapshots" / commit
        assert base.name == hub_id
    assert Base.open("owner/name").load().dtype == torch.float32
    with pytest.raises(CheckpointError, match=r"'owner/name@v2' to be a folder or to be found"):
        Base.open("owner/name@v2")


def test_name_of_a_folder_is_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert Base.open("checkpoint").name == str(folder.resolve())
    assert Base.open(Path("checkpoint")).name == str(folder.resolve())


def test_processor_keeps_its_own_size() -> None:
    processor = Base.open(MINI).processor()
    pixel_values = processor(images=Image.new("RGB", (50, 30)), return_tensors="pt")["pixel_values"]
    assert type(processor.image_processor).__name__ == "EfficientNetImageProcessorPil"
    assert pixel_values.shape == (1, 3, 224, 224)
    torch.testing.assert_close(pixel_values, torch.full_like(pixel_values, -127 / 128))


def test_processor_resizes_in_proportion(folder: Path) -> None:
    (folder / "processor_config.json").unlink()
    sides = {"size": {"height": 346, "width": 346}, "crop_size": {"height": 289, "width": 289}}
    edit_json(folder / "preprocessor_config.json", **sides)
    for image_size, resized in ((None, 346), (96, 115), (289, 346), (224, 268)):
        image_processor = Base.open(folder).processor(image_size).image_processor
        crop = image_size or 289
        assert dict(image_processor.size) == {"height": resized, "width": resized}
        assert dict(image_processor.crop_size) == {"height": crop, "width": crop}
        pixel_values = image_processor(Image.new("RGB", (400, 300)), return_tensors="pt")["pixel_values"]
        assert pixel_values.shape == (1, 3, crop, crop)


def test_processor_without_crop_has_its_resized_side(folder: Path) -> None:
    (folder / "processor_config.json").unlink()
    sides = {"size": {"height": 346, "width": 346}, "crop_size": {"height": 289, "width": 289}}
    edit_json(folder / "preprocessor_config.json", do_center_crop=False, **sides)
    image_processor = Base.open(folder).processor(96).image_processor
    pixel_values = image_processor(Image.new("RGB", (400, 300)), return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 96, 96)


def test_processor_refuses_images_smaller_than_the_tower_can_halve() -> None:
    with pytest.raises(RecipeError, match=r"image_size to be from 32 to 4096 pixels, but got 31"):
        Base.open(MINI).processor(31)


def test_processor_that_does_not_open_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"to open as an AlignProcessor, but got"):
        Base.open(folder).processor()


def test_saved_processor_forgets_how_it_was_opened(folder: Path, tmp_path: Path) -> None:
    Base.open(folder).processor().save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert saved == json.loads((folder / "tokenizer_config.json").read_text()) | {"processor_class": "AlignProcessor"}
