"""Every adapter kind and variant, exported and proven in a fresh process; failures leave nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AlignModel, AlignProcessor

from finetune.commands.cli import main
from finetune.core.errors import CheckpointError, RecipeError
from finetune.core.files import fingerprint_weights
from finetune.export.merged import export_merged, write_adapter, write_checkpoint
from finetune.export.proof import verify, write_witness
from finetune.model.base import load_model, load_processor, resolve_checkpoint
from finetune.model.lora import TowerLora, attach_lora
from finetune.model.towers import AlignTowers

IMAGE_KINDS = ["pointwise", "squeeze_excite", "stem"]
TEXT_KINDS = ["attention", "feed_forward", "projection", "embedding"]


def adapter_of(checkpoint, folder, batch, image_lora, text_lora, scale=0.02):
    """An adapter folder and a witness, as a run leaves them."""
    torch.manual_seed(0)
    towers = AlignTowers(attach_lora(load_model(checkpoint), image_lora, text_lora), True, 0.01)
    with torch.no_grad():
        for name, parameter in towers.named_parameters():
            if parameter.requires_grad and "magnitude" not in name and parameter.ndim:
                parameter += scale * torch.randn_like(parameter)
        towers.temperature.fill_(0.0321)
    write_witness(towers, batch, folder / "witness.safetensors")
    fingerprint = fingerprint_weights(resolve_checkpoint(checkpoint))
    write_adapter(towers, load_processor(checkpoint, 64), folder / "adapter", checkpoint, fingerprint)
    return folder / "adapter", folder / "witness.safetensors"


@pytest.mark.parametrize("variant", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
def test_every_layer_kind_is_proven(tiny, batch, tmp_path, variant):
    lora = (TowerLora(rank=3, layers=IMAGE_KINDS, **variant), TowerLora(rank=2, layers=TEXT_KINDS, **variant))
    adapter, witness = adapter_of(tiny, tmp_path, batch, *lora)
    proof = export_merged(tiny, adapter, witness, tmp_path / "merged")
    assert proof["max_abs_difference"].keys() == {"image", "text"}
    assert max(proof["max_abs_difference"].values()) <= 1e-5
    assert json.loads((tmp_path / "merged" / "merge_proof.json").read_text()) == proof
    base = load_file(f"{tiny}/model.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in merged.items()} == {
        name: (t.shape, t.dtype) for name, t in base.items()
    }
    recorded = load_file(witness)
    plain = load_model(tiny)
    with torch.no_grad():
        untouched = AlignTowers(plain, False, 0.01)(batch)
    assert (untouched.image_embeds - recorded["image_embeds"]).abs().max() > 1e-3
    assert (untouched.text_embeds - recorded["text_embeds"]).abs().max() > 1e-3


@pytest.fixture(scope="module")
def exported(tiny, batch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    image_lora = TowerLora(rank=2, whole=["depthwise", "norm"], train_statistics=True)
    adapter, witness = adapter_of(tiny, folder, batch, image_lora, TowerLora(rank=2, whole=["norm"]))
    export_merged(tiny, adapter, witness, folder / "merged")
    return folder


def test_folder_opens_with_plain_transformers_and_its_own_processor(exported):
    folder = exported / "merged"
    _, report = AlignModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    processor = AlignProcessor.from_pretrained(folder)
    assert processor.image_processor.crop_size["height"] == 64
    assert not list(folder.glob("*.bin")) + list(folder.glob("adapter*"))


def test_folder_has_what_transformers_4_reads(exported):
    legacy = json.loads((exported / "merged" / "preprocessor_config.json").read_text())
    nested = json.loads((exported / "merged" / "processor_config.json").read_text())["image_processor"]
    assert {key: legacy[key] for key in nested if key in legacy} == {
        key: nested[key] for key in nested if key in legacy
    }
    assert legacy["image_processor_type"] == "EfficientNetImageProcessor"
    assert legacy["crop_size"] == {"height": 64, "width": 64}
    tokenizer = json.loads((exported / "merged" / "tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only", "backend"} & set(tokenizer)


def test_temperature_travels_with_the_merge(exported):
    temperature = AlignModel.from_pretrained(exported / "merged").temperature.detach()
    assert torch.equal(temperature, torch.tensor(0.0321))


def test_tower_that_was_not_adapted_is_said_to_be_the_base_byte_for_byte(tiny, batch, tmp_path):
    adapter, witness = adapter_of(tiny, tmp_path, batch, None, TowerLora(rank=2))
    proof = export_merged(tiny, adapter, witness, tmp_path / "merged")
    assert proof["identical_to_base"] == {"image": True, "text": False}
    base, merged = load_file(f"{tiny}/model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    vision = [name for name in base if name.startswith("vision_model.")]
    assert all(base[name].numpy().tobytes() == merged[name].numpy().tobytes() for name in vision)


@pytest.fixture(scope="module")
def half(tiny, batch, tmp_path_factory):
    """A base that is stored in float16, an adapter of its text tower, and their merge."""
    folder = tmp_path_factory.mktemp("half")
    (folder / "base").mkdir()
    write_checkpoint(load_model(tiny).half(), load_processor(tiny), folder / "base")
    assert load_file(folder / "base" / "model.safetensors")["temperature"].dtype == torch.float16
    adapter, witness = adapter_of(str(folder / "base"), folder, batch, None, TowerLora(rank=2))
    proof = export_merged(str(folder / "base"), adapter, witness, folder / "merged")
    return folder, proof


def test_tower_of_a_half_precision_base_that_was_not_adapted_is_said_to_be_the_base(half):
    folder, proof = half
    assert proof["identical_to_base"] == {"image": True, "text": False}
    base, merged = (load_file(folder / name / "model.safetensors") for name in ("base", "merged"))
    vision = [name for name in base if name.startswith("vision_model.")]
    assert {merged[name].dtype for name in vision} == {torch.float32, torch.int64}
    assert all(base[name].to(merged[name].dtype).equal(merged[name]) for name in vision)


def test_adapter_of_a_half_precision_base_alone_as_documented_equals_the_merged_folder(half, tmp_path):
    folder, _ = half
    page = (Path(__file__).parents[2] / "docs" / "adapter-alone.md").read_text()
    (tmp_path / "alone.py").write_text(page.split("```python\n")[1].split("```")[0])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    image.save(tmp_path / "photo.png")
    arguments = ["alone.py", folder / "adapter", folder / "base", "photo.png"]
    done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "outputs.pt", weights_only=True)
    model, processor = (kind.from_pretrained(folder / "merged") for kind in (AlignModel, AlignProcessor))
    with torch.no_grad():
        labels = ["an image of a cat", "an image of a dog"]
        expected = model(**processor(images=image, text=labels, return_tensors="pt"))
    torch.testing.assert_close(found["image_embeds"], expected.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["logits_per_image"], expected.logits_per_image, atol=1e-3, rtol=0)


def test_files_have_the_mode_that_the_umask_asks_for(tiny, batch, tmp_path):
    former = os.umask(0o027)
    try:
        adapter_of(tiny, tmp_path, batch, None, TowerLora(rank=2))
    finally:
        os.umask(former)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"adapter_model.safetensors", "witness.safetensors"} < {path.name for path in files}
    assert {f"{path.stat().st_mode & 0o777:o}" for path in files} == {"640"}


def test_verify_repeats_the_proof_and_notices_changes(exported, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(exported / "merged", folder)
    (folder / "README.md").write_text("my own words")
    assert max(verify(folder)["max_abs_difference"].values()) <= 1e-5
    model = AlignModel.from_pretrained(folder)
    model.text_projection.weight.data[0, 0] += 1e-3
    model.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="Expected the model of .* to have SHA-256"):
        verify(folder)
    (folder / "merge_proof.json").unlink()
    with pytest.raises(CheckpointError, match="merge_proof.json is missing"):
        verify(folder)


PREPARATION = ["preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"]


def swap_words(folder):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
    path.write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("preprocessor_config.json", '"height": 64', '"height": 32'),
        ("processor_config.json", '"do_normalize": true', '"do_normalize": false'),
        ("tokenizer_config.json", '"do_lower_case": true', '"do_lower_case": false'),
    ],
)
def test_verify_names_the_file_that_prepares_otherwise(exported, tmp_path, name, old, new):
    folder = tmp_path / "copy"
    shutil.copytree(exported / "merged", folder)
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    with pytest.raises(CheckpointError, match=f"Expected the {name} of .* to have SHA-256 .*: export the run again"):
        verify(folder)


def test_verify_notices_two_words_that_changed_places_and_files_that_came_or_went(exported, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(exported / "merged", folder)
    tokenizer = (folder / "tokenizer.json").read_text()
    swap_words(folder)
    with pytest.raises(CheckpointError, match=r"Expected the tokenizer\.json of .* to have SHA-256"):
        verify(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"Expected the tokenizer\.json of .* SHA-256 \w{64}, but got none"):
        verify(folder)
    (folder / "tokenizer.json").write_text(tokenizer)
    (folder / "special_tokens_map.json").write_text('{"cls_token": "dog"}')
    with pytest.raises(CheckpointError, match=r"Expected the special_tokens_map\.json of .* to have SHA-256 none"):
        verify(folder)


def test_verify_asks_no_more_of_an_older_proof_than_it_says(exported, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(exported / "merged", folder)
    proof = json.loads((folder / "merge_proof.json").read_text())
    for name in PREPARATION:
        del proof["sha256"][name]
    (folder / "merge_proof.json").write_text(json.dumps(proof))
    swap_words(folder)
    assert max(verify(folder)["max_abs_difference"].values()) <= 1e-5


def test_verify_tells_of_weights_and_proofs_that_are_not_whole(exported, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(exported / "merged", folder)
    weights, proof = folder / "model.safetensors", folder / "merge_proof.json"
    whole, said = weights.read_bytes(), proof.read_text()
    weights.write_bytes(whole[:-1000])
    assert main(["verify", str(folder)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: Expected model.safetensors and config.json of {folder} to be there and whole")
    assert message.endswith("Export the run again.\n")
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"whole, but got: .* holds none\. Export the run again\."):
        verify(folder)
    weights.write_bytes(whole)
    for text in (said[:100], "[]", '{"tolerance": 1e-05}', '{"sha256": null}', '{"sha256": "abc"}'):
        proof.write_text(text)
        assert main(["verify", str(folder)]) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"error: Expected {proof} to be a proof with its hashes, but got ")
        assert message.endswith("Export the run again.\n")


@pytest.mark.parametrize(
    ("key", "fault"), [("image_embeds", float("nan")), ("text_embeds", 2e-5), ("temperature", 1e-6)]
)
def test_deviation_leaves_no_folder(tiny, exported, tmp_path, key, fault):
    tensors = load_file(exported / "witness.safetensors")
    tensors[key] = tensors[key] + fault
    save_file(tensors, tmp_path / "witness.safetensors")
    with pytest.raises(CheckpointError, match="within 1e-05 of the adapted model"):
        export_merged(tiny, exported / "adapter", tmp_path / "witness.safetensors", tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["witness.safetensors"]


def test_alpha_zero_is_the_base_bit_for_bit(tiny, exported, tmp_path):
    proof = export_merged(tiny, exported / "adapter", exported / "witness.safetensors", tmp_path / "base", alpha=0.0)
    assert fingerprint_weights(tmp_path / "base") == fingerprint_weights(resolve_checkpoint(tiny))
    assert proof["identical_to_base"] == {"image": True, "text": True}
    assert (proof["alpha"], proof["temperature"]) == (0.0, load_model(tiny).temperature.item())


def test_between_base_and_merge_lies_their_average_with_a_proof_of_its_own(tiny, exported, tmp_path):
    """Layers trained whole, statistics, low-rank adapters and temperature alike."""
    folder = tmp_path / "between"
    proof = export_merged(tiny, exported / "adapter", exported / "witness.safetensors", folder, alpha=0.3)
    base, merged = load_file(f"{tiny}/model.safetensors"), load_file(exported / "merged" / "model.safetensors")
    found = load_file(folder / "model.safetensors")
    assert found.keys() == base.keys()
    for name, tensor in found.items():
        if tensor.is_floating_point():
            average = np.float32(0.7) * base[name].numpy() + np.float32(0.3) * merged[name].numpy()
            np.testing.assert_allclose(tensor.numpy(), average, rtol=1e-6, atol=1e-9)
    assert found["temperature"] != base["temperature"]
    assert (proof["alpha"], proof["temperature"]) == (0.3, found["temperature"].item())
    trained, own = load_file(exported / "witness.safetensors"), load_file(folder / "witness.safetensors")
    assert own["pixel_values"].equal(trained["pixel_values"])
    assert (own["text_embeds"] - trained["text_embeds"]).abs().max() > 1e-3
    model = AlignModel.from_pretrained(folder)
    with torch.no_grad():
        text = model.get_text_features(input_ids=own["input_ids"], attention_mask=own["attention_mask"]).pooler_output
    torch.testing.assert_close(torch.nn.functional.normalize(text), own["text_embeds"], atol=1e-5, rtol=0)
    assert max(proof["max_abs_difference"].values()) <= 1e-5


def test_frozen_tower_stays_the_base_between_at_the_temperature_that_was_asked_for(tiny, batch, tmp_path):
    adapter, witness = adapter_of(tiny, tmp_path, batch, None, TowerLora(rank=2))
    proof = export_merged(tiny, adapter, witness, tmp_path / "between", alpha=0.7, temperature=0.0123)
    assert proof["identical_to_base"] == {"image": True, "text": False}
    temperature = AlignModel.from_pretrained(tmp_path / "between").temperature.item()
    assert proof["temperature"] == temperature == torch.tensor(0.0123).item()


@pytest.mark.parametrize("key", ["image_embeds", "temperature", pytest.param("image_features", marks=pytest.mark.slow)])
def test_merge_that_deviates_leaves_no_point_between(tiny, exported, tmp_path, key):
    tensors = load_file(exported / "witness.safetensors")
    tensors[key] = tensors[key] * 1.0001
    save_file(tensors, tmp_path / "witness.safetensors")
    with pytest.raises(CheckpointError, match="Expected the merged model to reproduce the witness within 1e-05"):
        export_merged(tiny, exported / "adapter", tmp_path / "witness.safetensors", tmp_path / "between", alpha=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["witness.safetensors"]


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_alpha_beyond_the_ends_leaves_no_folder(tiny, exported, tmp_path, alpha):
    with pytest.raises(RecipeError, match=r"alpha to be in \[0, 1\]"):
        export_merged(tiny, exported / "adapter", exported / "witness.safetensors", tmp_path / "beyond", alpha=alpha)
    assert not list(tmp_path.iterdir())


def test_existing_folder_is_refused_unless_overwritten(tiny, exported):
    arguments = (tiny, exported / "adapter", exported / "witness.safetensors", exported / "merged")
    with pytest.raises(FileExistsError, match="Remove it or pass --overwrite"):
        export_merged(*arguments)
    export_merged(*arguments, overwrite=True)
    assert (exported / "merged" / "merge_proof.json").is_file()
    assert not list(exported.glob(".merged*"))


def test_full_disk_leaves_no_folder(tiny, exported, tmp_path):
    """A file-size limit in a real process stands for the full disk: both make write() fail."""
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "from finetune.export.merged import export_merged\n"
        "export_merged(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))\n"
    )
    arguments = [tiny, exported / "adapter", exported / "witness.safetensors", tmp_path / "merged"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert not list(tmp_path.iterdir())
