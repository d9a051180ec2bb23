"""A trained head as a plain image classifier, proven in a fresh process; failures leave nothing."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from finetune.core.errors import CheckpointError
from finetune.core.files import fingerprint_file
from finetune.export.artifacts import verify
from finetune.export.classifier import ImageClassifier
from finetune.export.merged import MergedCheckpoint
from finetune.model import efficientnet
from finetune.model.base import Base
from finetune.model.head import LinearHead
from finetune.model.lora import TowerLora
from finetune.run.folder import RunFolder

from ..fingerprints import fingerprint_weights
from .runs import CLASSES, TEMPERATURE, adapt, open_trained, train_head, write_run

pytestmark = pytest.mark.usefixtures("share_opener")

PARTS = ("adapter", "head.safetensors", "processor")


@pytest.fixture(scope="module", params=["tiny", pytest.param("align-mini", marks=pytest.mark.slow)])
def trained(request, tiny, batch, opener, tmp_path_factory):
    """Swish with squeeze-excite, and relu6: a run, its merged weights, and its classifier's folder with the proof."""
    base = Base.open(tiny if request.param == "tiny" else request.param)
    path = tmp_path_factory.mktemp("trained")
    towers = adapt(base, TowerLora(rank=2), None)
    run = write_run(path, base, towers, batch, train_head(towers, batch))
    model = open_trained(run, base)
    run.merged.mkdir()
    MergedCheckpoint(model).write(run.merged)
    metrics = {"after": {"test/accuracy": 0.975}}
    proof = ImageClassifier.of(model).export(run.classifier, "pets", metrics, fresh=opener)
    return SimpleNamespace(
        base=base,
        run=run,
        folder=run.classifier,
        proof=proof,
        head=LinearHead.read(run.head),
        merged=Base.open(run.merged),
    )


only_tiny = pytest.mark.parametrize("trained", ["tiny"], indirect=True)


@torch.no_grad()
def features_of(trained, pixel_values) -> torch.Tensor:
    return trained.merged.load().get_image_features(pixel_values=pixel_values).pooler_output


def test_plain_transformers_compute_the_heads_logits(trained):
    recorded = load_file(trained.run.witness)
    with torch.no_grad():
        expected = features_of(trained, recorded["pixel_values"]) @ trained.head.weight.T + trained.head.bias
        logits = AutoModelForImageClassification.from_pretrained(trained.folder)(recorded["pixel_values"]).logits
    assert expected.std() > 0.1
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (logits - recorded["logits"]).abs().max() <= 1e-5 * expected.abs().max()


def test_folder_carries_its_proof(trained):
    assert trained.proof["max_relative_difference"].keys() == {"logits"}
    assert trained.proof["max_relative_difference"]["logits"] <= 1e-5
    assert json.loads((trained.folder / "merge_proof.json").read_text()) == trained.proof
    assert trained.proof["base_model"] == trained.base.public_name
    assert (trained.proof["interpolation"], trained.proof["scale"]) == (1.0, 1.0)
    assert trained.proof["sha256"]["merged"] == fingerprint_weights(trained.run.merged)
    assert trained.proof["sha256"]["model"] == fingerprint_weights(trained.folder)
    assert trained.proof["sha256"]["head"] == fingerprint_file(trained.run.head)
    assert sorted(path.name for path in trained.folder.iterdir()) == [
        "README.md",
        "config.json",
        "merge_proof.json",
        "model.safetensors",
        "preprocessor_config.json",
        "witness.safetensors",
    ]
    assert load_file(trained.folder / "witness.safetensors").keys() == {"pixel_values", "logits"}


def test_class_names_are_in_the_config(trained):
    config = json.loads((trained.folder / "config.json").read_text())
    assert config["id2label"] == {str(index): name for index, name in enumerate(CLASSES)}
    assert config["label2id"] == {name: index for index, name in enumerate(CLASSES)}
    assert config["architectures"] == ["EfficientNetForImageClassification"]
    assert "problem_type" not in config


def test_pipeline_names_the_heads_class(trained, tmp_path):
    """A PNG from disk, prepared by the folder's own processor."""
    generator = np.random.default_rng(5)
    classify = pipeline("image-classification", model=str(trained.folder), top_k=len(CLASSES))
    processor = trained.merged.processor()
    for index in range(3):
        path = tmp_path / f"{index}.png"
        noise = generator.integers(0, 256, (5, 4, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((90, 70)).save(path)
        found = {entry["label"]: entry["score"] for entry in classify(str(path))}
        pixels = processor(images=Image.open(path), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            logits = features_of(trained, pixels) @ trained.head.weight.T + trained.head.bias
        probabilities = dict(zip(CLASSES, logits.softmax(dim=1)[0].tolist(), strict=True))
        assert max(found, key=found.get) == max(probabilities, key=probabilities.get)
        assert found == pytest.approx(probabilities, abs=1e-4)


def test_processor_is_the_one_that_was_trained_with(trained):
    ours, theirs = trained.merged.processor().image_processor, AutoImageProcessor.from_pretrained(trained.folder)
    assert theirs.to_dict() == ours.to_dict()
    assert theirs.crop_size["height"] == 64


@only_tiny
def test_verify_repeats_the_proof_and_notices_changes(trained, tmp_path):
    folder = Path(shutil.copytree(trained.folder, tmp_path / "copy"))
    assert verify(folder)["max_relative_difference"]["logits"] <= 1e-5
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("emu", "yak"))
    with pytest.raises(CheckpointError, match=r"Expected the config of .* to have SHA-256"):
        verify(folder)
    (folder / "config.json").write_text(config)
    processor = (folder / "preprocessor_config.json").read_text()
    assert '"height": 64' in processor
    (folder / "preprocessor_config.json").write_text(processor.replace('"height": 64', '"height": 32'))
    with pytest.raises(CheckpointError, match=r"Expected the preprocessor_config\.json of .* to have SHA-256"):
        verify(folder)
    (folder / "preprocessor_config.json").write_text(processor)
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(processor)}))
    with pytest.raises(CheckpointError, match=r"Expected the processor_config\.json of .* to have SHA-256 none"):
        verify(folder)
    (folder / "processor_config.json").unlink()
    model = AutoModelForImageClassification.from_pretrained(folder)
    model.classifier.weight.data[0, 0] += 1e-3
    model.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"Expected the model of .* to have SHA-256"):
        verify(folder)


class Perturbed(ImageClassifier):
    """Writes another classifier than it was given."""

    fault = 1.0001

    def write(self, folder):
        super().write(folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["classifier.weight"] *= self.fault
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})


class NotANumber(Perturbed):
    fault = float("nan")


@only_tiny
@pytest.mark.parametrize("kind", [Perturbed, pytest.param(NotANumber, marks=pytest.mark.slow)])
def test_perturbed_classifier_leaves_no_folder(trained, tmp_path, opener, kind):
    model = kind.of(open_trained(trained.run, trained.base))
    with pytest.raises(CheckpointError, match=r"within 1e-05 of the adapted model, but got differences \{'logits': "):
        model.export(tmp_path / "classifier", "pets", {}, fresh=opener)
    assert not list(tmp_path.iterdir())


@only_tiny
@pytest.mark.slow
def test_head_between_its_start_and_itself_is_proven(trained, tmp_path):
    """At a third of the trained temperature, so that the logits are three times as large."""
    model = open_trained(trained.run, trained.base, interpolation=0.25, fitted=TEMPERATURE / 3)
    proof = ImageClassifier.of(model).export(tmp_path / "between", "pets", {})
    assert (proof["interpolation"], proof["scale"]) == (0.25, pytest.approx(3.0))
    stored, recorded = load_file(trained.run.head), load_file(tmp_path / "between" / "witness.safetensors")
    weight = 3 * (0.75 * stored["start_weight"].double() + 0.25 * stored["weight"].double())
    bias = 3 * (0.75 * stored["start_bias"].double() + 0.25 * stored["bias"].double())
    MergedCheckpoint(open_trained(trained.run, trained.base, interpolation=0.25)).write(tmp_path)
    with torch.no_grad():
        tower = Base.open(tmp_path).load()
        features = tower.get_image_features(pixel_values=recorded["pixel_values"]).pooler_output
        classifier = AutoModelForImageClassification.from_pretrained(tmp_path / "between")
        logits = classifier(recorded["pixel_values"]).logits
    assert proof["sha256"]["merged"] == fingerprint_weights(tmp_path)
    expected = (features.double() @ weight.T + bias).float()
    torch.testing.assert_close(recorded["logits"], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(expected, load_file(trained.run.witness)["logits"], atol=1e-2)


@only_tiny
@pytest.mark.parametrize("interpolation", [0.5, 1.0])
def test_head_of_another_run_leaves_no_folder(trained, tmp_path, interpolation):
    for name in PARTS:
        (tmp_path / name).symlink_to(trained.run.path / name)
    tensors = load_file(trained.run.witness)
    tensors["logits"] *= 1.0001
    save_file(tensors, tmp_path / "witness.safetensors")
    other = RunFolder(tmp_path)
    with pytest.raises(
        CheckpointError, match="Expected the merged model to reproduce the witness within 1e-05.*logits"
    ):
        ImageClassifier.of(open_trained(other, trained.base, interpolation)).export(other.classifier, "pets", {})
    assert {path.name for path in tmp_path.iterdir()} == {*PARTS, "witness.safetensors"}


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["align-mini"], indirect=True)
def test_clipped_features_leave_no_folder(trained, tmp_path, monkeypatch):
    assert efficientnet.feature_scale(trained.merged.load().vision_model) > 1
    monkeypatch.setattr(efficientnet, "feature_scale", lambda _: 0.125)  # clips above 0.75
    with pytest.raises(CheckpointError, match="within 1e-05 of the adapted model"):
        ImageClassifier.of(open_trained(trained.run, trained.base)).export(tmp_path / "classifier", "pets", {})
    assert not list(tmp_path.iterdir())


def test_a_head_of_several_labels_says_so(base, batch, tmp_path):
    """The pipeline itself is asked in test_several_labels.py."""
    towers = adapt(base, TowerLora(rank=2), None)
    run = write_run(tmp_path, base, towers, batch, train_head(towers, batch, is_multilabel=True))
    run.classifier.mkdir()
    ImageClassifier.of(open_trained(run, base)).write(run.classifier)
    config = json.loads((run.classifier / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"


@only_tiny
def test_existing_folder_is_refused(trained):
    with pytest.raises(FileExistsError, match="Remove it or pass --overwrite"):
        ImageClassifier.of(open_trained(trained.run, trained.base)).export(trained.folder, "pets", {})


def test_card_shows_how_to_load_it(trained):
    card = (trained.folder / "README.md").read_text()
    assert f"The image tower of `{trained.base.public_name}`" in card
    assert "pipeline_tag: image-classification" in card
    assert "| test/accuracy | 97.5 % |" in card
    assert '\nfolder = "classifier"  # or OWNER/NAME' in card
    assert 'pipeline("image-classification", model=folder, image_processor=processor)' in card
