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
from finetune.core.files import fingerprint_file
from finetune.core.interpolation import Interpolation
from finetune.export.artifacts import verify
from finetune.export.merged import MergedCheckpoint, write_checkpoint
from finetune.export.proof import READ_UNASKED
from finetune.model.base import Base
from finetune.model.lora import TowerLora
from finetune.model.towers import AlignTowers
from finetune.run.folder import RunFolder

from ..fingerprints import fingerprint_weights
from .runs import TEMPERATURE, adapt, open_trained, write_run

IMAGE_KINDS = ["pointwise", "squeeze_excite", "stem"]
TEXT_KINDS = ["attention", "feed_forward", "projection", "embedding"]


@pytest.fixture(scope="module")
def export(opener):
    def run_export(run, base, output, interpolation=1.0, fitted=None, overwrite=False):
        trained, kept = open_trained(run, base, interpolation, fitted), {"overwrite": overwrite, "fresh": opener}
        return MergedCheckpoint(trained).export(output, "birds", trained.choice.as_metrics(), **kept)

    return run_export


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param({}, id="lora"),
        pytest.param({"use_rslora": True}, id="rslora", marks=pytest.mark.slow),
        pytest.param({"use_dora": True}, id="dora", marks=pytest.mark.slow),
    ],
)
def test_every_layer_kind_is_proven(base, batch, tmp_path, variant, export):
    lora = (TowerLora(rank=3, layers=IMAGE_KINDS, **variant), TowerLora(rank=2, layers=TEXT_KINDS, **variant))
    run = write_run(tmp_path, base, adapt(base, *lora), batch)
    proof = export(run, base, run.merged)
    assert proof["max_abs_difference"].keys() == {"image", "text"}
    assert max(proof["max_abs_difference"].values()) <= 1e-5
    assert json.loads((run.merged / "merge_proof.json").read_text()) == proof
    before, merged = load_file(base.folder / "model.safetensors"), load_file(run.merged / "model.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in merged.items()} == {
        name: (t.shape, t.dtype) for name, t in before.items()
    }
    recorded = load_file(run.witness)
    with torch.no_grad():
        untouched = AlignTowers(base.load(), False, 0.01)(batch)
    assert (untouched.image_embeds - recorded["image_embeds"]).abs().max() > 1e-3
    assert (untouched.text_embeds - recorded["text_embeds"]).abs().max() > 1e-3


@pytest.fixture(scope="module")
def merged(run, base, tmp_path_factory) -> Path:
    """The folder of the run, which a process of its own has opened."""
    folder, trained = tmp_path_factory.mktemp("exported") / "merged", open_trained(run, base)
    MergedCheckpoint(trained).export(folder, "birds", trained.choice.as_metrics())
    return folder


@pytest.fixture
def copy(merged, tmp_path) -> Path:
    """A copy of the folder, to be changed."""
    return Path(shutil.copytree(merged, tmp_path / "copy"))


def test_folder_opens_with_plain_transformers_and_its_own_processor(merged):
    _, report = AlignModel.from_pretrained(merged, output_loading_info=True)
    assert not any(report.values())
    processor = AlignProcessor.from_pretrained(merged)
    assert processor.image_processor.crop_size["height"] == 64
    assert not list(merged.glob("*.bin")) + list(merged.glob("adapter*"))


def test_folder_has_what_transformers_4_reads(merged):
    legacy = json.loads((merged / "preprocessor_config.json").read_text())
    nested = json.loads((merged / "processor_config.json").read_text())["image_processor"]
    assert {key: legacy[key] for key in nested if key in legacy} == {
        key: nested[key] for key in nested if key in legacy
    }
    assert legacy["image_processor_type"] == "EfficientNetImageProcessor"
    assert legacy["crop_size"] == {"height": 64, "width": 64}
    tokenizer = json.loads((merged / "tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only", "backend"} & set(tokenizer)


def test_temperature_travels_with_the_merge(merged):
    temperature = AlignModel.from_pretrained(merged).temperature.detach()
    assert torch.equal(temperature, torch.tensor(TEMPERATURE))


def test_tower_that_was_not_adapted_is_said_to_be_the_base_byte_for_byte(base, text_run, tmp_path, export):
    proof = export(text_run, base, tmp_path / "merged")
    assert proof["identical_to_base"] == {"image": True, "text": False}
    before, merged = (load_file(folder / "model.safetensors") for folder in (base.folder, tmp_path / "merged"))
    vision = [name for name in before if name.startswith("vision_model.")]
    assert all(before[name].numpy().tobytes() == merged[name].numpy().tobytes() for name in vision)


@pytest.fixture(scope="module")
def half(base, batch, tmp_path_factory, export):
    """A base that is stored in float16, an adapter of its text tower, and their merge."""
    folder = tmp_path_factory.mktemp("half")
    (folder / "base").mkdir()
    write_checkpoint(base.load().half(), base.processor(), folder / "base")
    assert load_file(folder / "base" / "model.safetensors")["temperature"].dtype == torch.float16
    half = Base.open(folder / "base")
    (folder / "run").mkdir()
    run = write_run(folder / "run", half, adapt(half, None, TowerLora(rank=2)), batch)
    return half, run, export(run, half, run.merged)


@pytest.mark.slow
def test_tower_of_a_half_precision_base_that_was_not_adapted_is_said_to_be_the_base(half):
    base, run, proof = half
    assert proof["identical_to_base"] == {"image": True, "text": False}
    before, merged = (load_file(folder / "model.safetensors") for folder in (base.folder, run.merged))
    vision = [name for name in before if name.startswith("vision_model.")]
    assert {merged[name].dtype for name in vision} == {torch.float32, torch.int64}
    assert all(before[name].to(merged[name].dtype).equal(merged[name]) for name in vision)


@pytest.mark.slow
def test_adapter_of_a_half_precision_base_alone_as_documented_equals_the_merged_folder(half, tmp_path):
    base, run, _ = half
    page = (Path(__file__).parents[2] / "docs" / "adapter-alone.md").read_text()
    (tmp_path / "alone.py").write_text(page.split("```python\n")[1].split("```")[0])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    image.save(tmp_path / "photo.png")
    arguments = ["alone.py", run.adapter, base.folder, "photo.png"]
    done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "outputs.pt", weights_only=True)
    model, processor = (kind.from_pretrained(run.merged) for kind in (AlignModel, AlignProcessor))
    with torch.no_grad():
        labels = ["an image of a cat", "an image of a dog"]
        expected = model(**processor(images=image, text=labels, return_tensors="pt"))
    torch.testing.assert_close(found["image_embeds"], expected.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["logits_per_image"], expected.logits_per_image, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_files_have_the_mode_that_the_umask_asks_for(base, text_run, tmp_path, export):
    former = os.umask(0o027)
    try:
        export(text_run, base, tmp_path / "merged")
    finally:
        os.umask(former)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"model.safetensors", "witness.safetensors", "README.md", "tokenizer.json"} < {path.name for path in files}
    assert {f"{path.stat().st_mode & 0o777:o}" for path in files} == {"640"}
    assert f"{(tmp_path / 'merged').stat().st_mode & 0o777:o}" == "750"


def test_verify_repeats_the_proof_and_notices_changes(copy, merged):
    (copy / "README.md").write_text("my own words")
    (copy / "measurement").mkdir()
    (copy / "measurement" / "measurement.json").write_text("{}")
    recorded = json.loads((merged / "merge_proof.json").read_text())
    found = verify(copy)
    assert max(found["max_abs_difference"].values()) <= 1e-5
    assert found["sha256"].items() < recorded["sha256"].items()
    assert recorded["sha256"].keys() - found["sha256"].keys() == {"base_model", "adapter"}
    model = AlignModel.from_pretrained(copy)
    model.text_projection.weight.data[0, 0] += 1e-3
    model.save_pretrained(copy)
    with pytest.raises(CheckpointError, match="Expected the model of .* to have SHA-256"):
        verify(copy)
    (copy / "merge_proof.json").unlink()
    with pytest.raises(CheckpointError, match="merge_proof.json is missing"):
        verify(copy)


WRITTEN = {
    "config.json": "config",
    "model.safetensors": "model",
    "preprocessor_config.json": "preprocessor_config.json",
    "processor_config.json": "processor_config.json",
    "tokenizer.json": "tokenizer.json",
    "tokenizer_config.json": "tokenizer_config.json",
    "witness.safetensors": "witness",
}
"""Files of a merged folder, and their names in its proof."""


def test_proof_speaks_of_every_file(merged):
    files = {path.name for path in merged.rglob("*") if path.is_file()}
    assert files == WRITTEN.keys() | {"merge_proof.json", "README.md"}
    hashes = json.loads((merged / "merge_proof.json").read_text())["sha256"]
    assert hashes.keys() == {*WRITTEN.values(), "base_model", "adapter"}


@pytest.mark.parametrize("name", WRITTEN)
def test_verify_names_the_file_in_which_a_byte_changed_or_that_is_gone(copy, name):
    path = copy / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"Expected the {WRITTEN[name]} of .*SHA-256 .*: export the run again"):
        verify(copy)
    path.unlink()
    repair = "but (got none|witness.safetensors is missing)"
    with pytest.raises(CheckpointError, match=f"Expected .* {repair}.*xport the run again"):
        verify(copy)


@pytest.mark.parametrize("name", sorted({*READ_UNASKED} - WRITTEN.keys()))
def test_verify_notices_a_file_that_came(copy, name):
    (copy / name).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"Expected the {name} of .* to have SHA-256 none, but got \w{{64}}"):
        verify(copy)


def test_verify_opens_no_strangers_folder_that_reaches_out(copy):
    """Its author wrote the hashes as well."""
    config, proof = copy / "config.json", json.loads((copy / "merge_proof.json").read_text())
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_attn_implementation": "somebody/kernel"}))
    proof["sha256"][WRITTEN["config.json"]] = fingerprint_file(config)
    (copy / "merge_proof.json").write_text(json.dumps(proof))
    with pytest.raises(CheckpointError, match="ALIGN's own layers, but got '_attn_implementation': 'somebody/kernel'"):
        verify(copy)


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
def test_verify_names_the_file_that_prepares_otherwise(copy, name, old, new):
    text = (copy / name).read_text()
    assert old in text
    (copy / name).write_text(text.replace(old, new))
    with pytest.raises(CheckpointError, match=f"Expected the {name} of .* to have SHA-256 .*: export the run again"):
        verify(copy)


def test_verify_notices_two_words_that_changed_places_and_files_that_came_or_went(copy):
    tokenizer = (copy / "tokenizer.json").read_text()
    swap_words(copy)
    with pytest.raises(CheckpointError, match=r"Expected the tokenizer\.json of .* to have SHA-256"):
        verify(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"Expected the tokenizer\.json of .* SHA-256 \w{64}, but got none"):
        verify(copy)
    (copy / "tokenizer.json").write_text(tokenizer)
    (copy / "special_tokens_map.json").write_text('{"cls_token": "dog"}')
    with pytest.raises(CheckpointError, match=r"Expected the special_tokens_map\.json of .* to have SHA-256 none"):
        verify(copy)


def test_verify_asks_for_the_hash_of_every_file_that_prepares(copy):
    path = copy / "merge_proof.json"
    proof = json.loads(path.read_text())
    del proof["sha256"]["tokenizer.json"]
    path.write_text(json.dumps(proof))
    with pytest.raises(CheckpointError, match=r"Expected the tokenizer\.json of .* to have SHA-256 none"):
        verify(copy)


def test_verify_says_which_weights_and_proofs_are_not_whole(copy, capsys):
    weights, proof = copy / "model.safetensors", copy / "merge_proof.json"
    whole, said = weights.read_bytes(), proof.read_text()
    weights.write_bytes(whole[:-1000])
    assert main(["verify", str(copy)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: Expected the files of {copy} to be whole, but got: ")
    assert message.endswith("Export the run again.\n")
    weights.write_bytes(whole)
    for text in (
        said[:100],
        "[]",
        '{"tolerance": 1e-05}',
        '{"sha256": null}',
        '{"sha256": "abc"}',
        '{"artifact": "merged", "sha256": null}',
        '{"artifact": "merged", "sha256": "abc"}',
        said.replace('"merged"', '"other"'),
    ):
        proof.write_text(text)
        assert main(["verify", str(copy)]) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"error: Expected {proof} to be a proof with its kind and hashes, but got ")
        assert message.endswith("Export the run again.\n")


class Perturbed(MergedCheckpoint):
    """Writes other weights than it was given."""

    fault = "text_projection.bias"

    def write(self, folder):
        super().write(folder)
        tensors = load_file(folder / "model.safetensors")
        tensors[self.fault] += 1e-3
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})


class OtherTemperature(Perturbed):
    fault = "temperature"


class NotANumber(MergedCheckpoint):
    def write(self, folder):
        super().write(folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["text_projection.bias"][0] = float("nan")
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})


class AdapterLeftOver(MergedCheckpoint):
    """Leaves the adapter in the folder, which transformers then puts into the merged weights once more."""

    def write(self, folder):
        super().write(folder)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(self.trained.run.adapter / name, folder / name)


class TensorMissing(MergedCheckpoint):
    def write(self, folder):
        super().write(folder)
        tensors = load_file(folder / "model.safetensors")
        del tensors["text_projection.bias"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "kind",
    [
        Perturbed,
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in (OtherTemperature, NotANumber, AdapterLeftOver)),
    ],
)
def test_folder_that_answers_otherwise_in_the_fresh_process_is_not_kept(run, text_run, base, tmp_path, opener, kind):
    trained = open_trained(text_run if kind is AdapterLeftOver else run, base)
    message = r"Expected \S+ to reproduce the witness within 1e-05 of the adapted model, but got differences"
    with pytest.raises(CheckpointError, match=message):
        kind(trained).export(tmp_path / "merged", "birds", {}, fresh=opener)
    assert not list(tmp_path.iterdir())


def test_folder_that_lacks_a_tensor_is_not_kept(run, base, tmp_path, opener):
    with pytest.raises(CheckpointError, match="to load without missing_keys, but got text_projection.bias and 0 more"):
        TensorMissing(open_trained(run, base)).export(tmp_path / "merged", "birds", {}, fresh=opener)
    assert not list(tmp_path.iterdir())


def tamper(run, folder, change) -> RunFolder:
    """The same run with another witness."""
    for path in (run.adapter, run.processor):
        (folder / path.name).symlink_to(path)
    tensors = load_file(run.witness)
    change(tensors)
    save_file(tensors, folder / "witness.safetensors")
    return RunFolder(folder)


@pytest.mark.parametrize(
    ("key", "fault"), [("image_embeds", float("nan")), ("text_embeds", 2e-5), ("temperature", 1e-6)]
)
def test_deviation_leaves_no_folder(base, run, tmp_path, key, fault, export):
    tampered = tamper(run, tmp_path, lambda tensors: tensors.update({key: tensors[key] + fault}))
    with pytest.raises(CheckpointError, match="within 1e-05 of the adapted model"):
        export(tampered, base, tampered.merged)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "processor", "witness.safetensors"}


def test_interpolation_zero_is_the_base_bit_for_bit(base, run, tmp_path, export):
    proof = export(run, base, tmp_path / "base", interpolation=0.0)
    assert fingerprint_weights(tmp_path / "base") == fingerprint_weights(base.folder)
    assert proof["identical_to_base"] == {"image": True, "text": True}
    assert (proof["interpolation"], proof["temperature"]) == (0.0, base.load().temperature.item())


def test_between_base_and_merge_lies_their_average_with_a_proof_of_its_own(base, run, merged, tmp_path, export):
    """Layers trained whole, statistics, low-rank adapters and temperature alike."""
    folder = tmp_path / "between"
    proof = export(run, base, folder, interpolation=0.3)
    before, trained = load_file(base.folder / "model.safetensors"), load_file(merged / "model.safetensors")
    found = load_file(folder / "model.safetensors")
    assert found.keys() == before.keys()
    for name, tensor in found.items():
        if tensor.is_floating_point():
            average = np.float32(0.7) * before[name].numpy() + np.float32(0.3) * trained[name].numpy()
            np.testing.assert_allclose(tensor.numpy(), average, rtol=1e-6, atol=1e-9)
    assert found["temperature"] != before["temperature"]
    assert (proof["interpolation"], proof["temperature"]) == (0.3, found["temperature"].item())
    recorded, own = load_file(run.witness), load_file(folder / "witness.safetensors")
    assert own["pixel_values"].equal(recorded["pixel_values"])
    assert (own["text_embeds"] - recorded["text_embeds"]).abs().max() > 1e-3
    model = AlignModel.from_pretrained(folder)
    with torch.no_grad():
        text = model.get_text_features(input_ids=own["input_ids"], attention_mask=own["attention_mask"]).pooler_output
    torch.testing.assert_close(torch.nn.functional.normalize(text), own["text_embeds"], atol=1e-5, rtol=0)
    assert max(proof["max_abs_difference"].values()) <= 1e-5


def test_a_profile_is_proven_and_leaves_a_tower_at_0_the_bases(base, run, merged, tmp_path, export):
    """Low-rank adapters and layers trained whole; the trained temperature has the mean of the last weights."""
    profile = Interpolation(image=(0.0, 0.0), text=(0.2, 0.8))
    proof = export(run, base, tmp_path / "rising", interpolation=profile)
    assert proof["identical_to_base"] == {"image": True, "text": False}
    assert json.loads((tmp_path / "rising" / "merge_proof.json").read_text())["interpolation"] == {
        "image": [0.0, 0.0],
        "text": [0.2, 0.8],
    }
    folders = (base.folder, merged, tmp_path / "rising")
    before, trained, found = (load_file(folder / "model.safetensors") for folder in folders)
    weights = {"temperature": 0.4, "text_projection.weight": 0.8, "text_model.encoder.layer.0.output.dense.weight": 0.2}
    for name, weight in weights.items():
        assert not before[name].equal(trained[name])
        average = np.float32(1 - weight) * before[name].numpy() + np.float32(weight) * trained[name].numpy()
        np.testing.assert_array_equal(found[name].numpy(), average)
    assert proof["temperature"] == AlignModel.from_pretrained(tmp_path / "rising").temperature.item()


@pytest.mark.slow
def test_frozen_tower_stays_the_base_between_at_the_temperature_that_was_fitted(base, text_run, tmp_path, export):
    proof = export(text_run, base, tmp_path / "between", interpolation=0.7, fitted=0.0123)
    assert proof["identical_to_base"] == {"image": True, "text": False}
    temperature = AlignModel.from_pretrained(tmp_path / "between").temperature.item()
    assert proof["temperature"] == temperature == torch.tensor(0.0123).item()


@pytest.mark.parametrize("key", ["image_embeds", "temperature", "image_features"])
def test_merge_that_deviates_leaves_no_point_between(base, run, tmp_path, key, export):
    tampered = tamper(run, tmp_path, lambda tensors: tensors.update({key: tensors[key] * 1.0001}))
    with pytest.raises(CheckpointError, match="Expected the merged model to reproduce the witness within 1e-05"):
        export(tampered, base, tampered.merged, interpolation=0.5)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "processor", "witness.safetensors"}


@pytest.mark.parametrize("interpolation", [-0.1, 1.5])
def test_interpolation_beyond_the_ends_leaves_no_folder(base, run, tmp_path, interpolation, export):
    with pytest.raises(RecipeError, match=r"interpolation to be in \[0, 1\]"):
        export(run, base, tmp_path / "beyond", interpolation)
    assert not list(tmp_path.iterdir())


def test_existing_folder_is_refused_unless_overwritten(base, run, copy, tmp_path, export):
    with pytest.raises(FileExistsError, match="Remove it or pass --overwrite"):
        export(run, base, copy)
    export(run, base, copy, interpolation=0.0, overwrite=True)
    assert json.loads((copy / "merge_proof.json").read_text())["interpolation"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("name", ["thesis.tex", "recipe.yaml"])
def test_folder_that_no_export_wrote_is_not_replaced(base, run, tmp_path, name, export):
    """Somebody's files; and a run, which has proofs further down."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / name).write_text("all of it")
    if name == "recipe.yaml":
        (folder / "merge_proof.json").write_text("{}")
    with pytest.raises(FileExistsError, match="absent, empty or written by this command"):
        export(run, base, folder, overwrite=True)
    assert (folder / name).read_text() == "all of it"


@pytest.mark.slow
def test_full_disk_leaves_no_folder(base, text_run, tmp_path):
    """A file-size limit in a real process stands for the full disk: both make write() fail."""
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "from finetune.export.choose_interpolation import Choice\n"
        "from finetune.export.merged import MergedCheckpoint\n"
        "from finetune.export.trained import TrainedModel\n"
        "from finetune.model.base import Base\n"
        "from finetune.run.folder import RunFolder\n"
        "trained = TrainedModel(RunFolder(Path(sys.argv[1])), Base.open(sys.argv[2]), Choice(1.0))\n"
        "MergedCheckpoint(trained).export(Path(sys.argv[3]), 'birds', {})\n"
    )
    arguments = [text_run.path, base.folder, tmp_path / "merged"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "write_checkpoint" in done.stderr
    assert not list(tmp_path.iterdir())
