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
from finetune.core.files import fingerprint_weights
from finetune.export import classifier
from finetune.export.classifier import build_classifier, export_classifier, feature_scale, interpolate_head
from finetune.export.merged import export_merged, write_adapter
from finetune.export.proof import verify, write_witness
from finetune.model.base import load_model, load_processor, resolve_checkpoint
from finetune.model.head import Head, build_head, read_head, write_head
from finetune.model.lora import TowerLora, attach_lora
from finetune.model.towers import AlignTowers
from finetune.objectives import Classification

CLASSES = ("cat", "dog", "Käse", "emu", "fox")


def train(checkpoint, batch, folder):
    """Adapter, merged folder, head and witness, as a run with a head leaves them."""
    torch.manual_seed(0)
    towers = AlignTowers(attach_lora(load_model(checkpoint), TowerLora(rank=2), None), False, 0.01)
    objective = Classification()
    with torch.no_grad():
        for parameter in towers.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
        towers.temperature.fill_(0.05)
        embeddings = towers(batch)
        weight = embeddings.text_embeds[: len(CLASSES)] / embeddings.image_features.norm(dim=-1).mean()
        objective.start(weight / towers.temperature, torch.linspace(-1, 1, len(CLASSES)))
        objective.weight += 0.3 * objective.weight.std() * torch.randn_like(objective.weight)
        objective.bias += torch.randn_like(objective.bias)
    witness, adapter, head = folder / "witness.safetensors", folder / "adapter", folder / "head.safetensors"
    write_witness(towers, batch, witness, objective)
    write_head(build_head(objective, CLASSES, is_multilabel=False), head)
    fingerprint = fingerprint_weights(resolve_checkpoint(checkpoint))
    write_adapter(towers, load_processor(checkpoint, 64), adapter, checkpoint, fingerprint)
    export_merged(checkpoint, adapter, witness, folder / "merged")
    return SimpleNamespace(merged=str(folder / "merged"), head=head, witness=witness)


@pytest.fixture(scope="module", params=["tiny", pytest.param("align-mini", marks=pytest.mark.slow)])
def trained(request, tiny, batch, tmp_path_factory):
    """Swish with squeeze-excite, and relu6."""
    folder = tmp_path_factory.mktemp("trained")
    run = train(tiny if request.param == "tiny" else request.param, batch, folder)
    run.folder = folder / "classifier"
    run.proof = export_again(run, run.folder)
    return run


def export_again(run, output):
    return export_classifier(run.merged, load_processor(run.merged).image_processor, run.head, run.witness, output)


def test_plain_transformers_compute_the_heads_logits(trained):
    recorded = load_file(trained.witness)
    with torch.no_grad():
        features = load_model(trained.merged).get_image_features(pixel_values=recorded["pixel_values"]).pooler_output
        head = read_head(trained.head)
        expected = features @ head.weight.T + head.bias
        logits = AutoModelForImageClassification.from_pretrained(trained.folder)(recorded["pixel_values"]).logits
    assert expected.std() > 0.1
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (logits - recorded["logits"]).abs().max() <= 1e-5 * expected.abs().max()


def test_folder_carries_its_proof(trained):
    assert trained.proof["max_relative_difference"]["logits"] <= 1e-5
    assert json.loads((trained.folder / "merge_proof.json").read_text()) == trained.proof
    assert trained.proof["sha256"]["merged"] == fingerprint_weights(Path(trained.merged))
    assert trained.proof["sha256"]["model"] == fingerprint_weights(trained.folder)
    assert sorted(path.name for path in trained.folder.iterdir()) == [
        "config.json",
        "merge_proof.json",
        "model.safetensors",
        "preprocessor_config.json",
        "witness.safetensors",
    ]


def test_class_names_are_in_the_config(trained):
    config = json.loads((trained.folder / "config.json").read_text())
    assert config["id2label"] == {str(index): name for index, name in enumerate(CLASSES)}
    assert config["label2id"] == {name: index for index, name in enumerate(CLASSES)}
    assert config["architectures"] == ["EfficientNetForImageClassification"]


def test_pipeline_names_the_heads_class(trained, tmp_path):
    """A PNG from disk, prepared by the folder's own processor."""
    generator = np.random.default_rng(5)
    classify = pipeline("image-classification", model=str(trained.folder), top_k=len(CLASSES))
    align, processor, head = load_model(trained.merged), load_processor(trained.merged), read_head(trained.head)
    for index in range(3):
        path = tmp_path / f"{index}.png"
        noise = generator.integers(0, 256, (5, 4, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((90, 70)).save(path)
        found = {entry["label"]: entry["score"] for entry in classify(str(path))}
        pixels = processor(images=Image.open(path), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            logits = align.get_image_features(pixel_values=pixels).pooler_output @ head.weight.T + head.bias
        probabilities = dict(zip(CLASSES, logits.softmax(dim=1)[0].tolist(), strict=True))
        assert max(found, key=found.get) == max(probabilities, key=probabilities.get)
        assert found == pytest.approx(probabilities, abs=1e-4)


def test_processor_is_the_checkpoints_own(trained):
    ours, theirs = load_processor(trained.merged).image_processor, AutoImageProcessor.from_pretrained(trained.folder)
    assert theirs.to_dict() == ours.to_dict()
    assert theirs.crop_size["height"] == 64


@pytest.mark.parametrize("trained", ["tiny"], indirect=True)
def test_verify_repeats_the_proof_and_notices_changes(trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained.folder, folder)
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


@pytest.mark.parametrize("trained", ["tiny"], indirect=True)
@pytest.mark.parametrize("fault", [1.0001, float("nan")])
def test_perturbed_classifier_leaves_no_folder(trained, tmp_path, monkeypatch, fault):
    def perturbed(align, head):
        model = build_classifier(align, head)
        model.classifier.weight.data *= fault
        return model

    monkeypatch.setattr(classifier, "build_classifier", perturbed)
    with pytest.raises(CheckpointError, match="within 1e-05 of the adapted model, but got max_relative_difference"):
        export_again(trained, tmp_path / "classifier")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("trained", ["tiny"], indirect=True)
def test_head_between_its_start_and_itself_is_proven(trained, tmp_path):
    arguments = (trained.merged, load_processor(trained.merged).image_processor, trained.head, trained.witness)
    proof = export_classifier(*arguments, tmp_path / "between", alpha=0.25, scale=3.0)
    assert (proof["alpha"], proof["scale"]) == (0.25, 3.0)
    stored, recorded = load_file(trained.head), load_file(tmp_path / "between" / "witness.safetensors")
    weight = 3 * (0.75 * stored["start_weight"].double() + 0.25 * stored["weight"].double())
    bias = 3 * (0.75 * stored["start_bias"].double() + 0.25 * stored["bias"].double())
    with torch.no_grad():
        features = load_model(trained.merged).get_image_features(pixel_values=recorded["pixel_values"]).pooler_output
        model = AutoModelForImageClassification.from_pretrained(tmp_path / "between")
        logits = model(recorded["pixel_values"]).logits
    expected = (features.double() @ weight.T + bias).float()
    torch.testing.assert_close(recorded["logits"], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(expected, load_file(trained.witness)["logits"], atol=1e-2)


@pytest.mark.parametrize("trained", ["tiny"], indirect=True)
def test_ends_of_a_head_are_its_start_and_itself(trained):
    head, recorded = read_head(trained.head), load_file(trained.witness)
    assert interpolate_head(head, 1.0).weight.equal(head.weight)
    assert interpolate_head(head, 1.0).bias.equal(head.bias)
    start, stored = interpolate_head(head, 0.0, scale=7.0), load_file(trained.head)
    assert start.weight.equal(7 * stored["start_weight"])
    assert start.bias.equal(7 * stored["start_bias"])
    features = recorded["image_features"]
    assert not head.logits(features).argsort(dim=1).equal(start.logits(features).argsort(dim=1))


@pytest.mark.parametrize("trained", ["tiny"], indirect=True)
def test_head_of_another_run_leaves_no_folder_between(trained, tmp_path):
    tensors = load_file(trained.witness)
    tensors["logits"] *= 1.0001
    save_file(tensors, tmp_path / "witness.safetensors")
    arguments = (trained.merged, load_processor(trained.merged).image_processor, trained.head)
    with pytest.raises(CheckpointError, match="Expected the head to reproduce the witness within 1e-05"):
        export_classifier(*arguments, tmp_path / "witness.safetensors", tmp_path / "between", alpha=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["witness.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["align-mini"], indirect=True)
def test_clipped_features_leave_no_folder(trained, tmp_path, monkeypatch):
    assert feature_scale(load_model(trained.merged).vision_model) > 1
    monkeypatch.setattr(classifier, "feature_scale", lambda _: 0.125)  # clips above 0.75
    with pytest.raises(CheckpointError, match="within 1e-05 of the adapted model"):
        export_again(trained, tmp_path / "classifier")
    assert not list(tmp_path.iterdir())


def test_scale_holds_for_images_far_from_any_seen():
    """Constant, noise and huge values: no feature of align-mini reaches the border of relu6."""
    tower = load_model("align-mini").vision_model
    largest = []
    tower.encoder.blocks[-1].register_forward_hook(lambda _module, _inputs, output: largest.append(output.abs().max()))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for spread in (0.0, 1.0, 30.0, 1e4):
            tower(spread * torch.randn(4, 3, 64, 64, generator=generator) + spread)
    scale = feature_scale(tower)
    assert scale == 2 ** round(np.log2(scale))
    assert max(largest) / scale < 6


def test_scale_counts_blocks_that_add_to_each_other():
    """A last stage of two blocks: the second adds to the first, and both bounds count."""
    tower = load_model("align-mini").vision_model
    single = feature_scale(tower)
    assert not tower.encoder.blocks[-1].projection.apply_dropout
    tower.encoder.blocks.append(tower.encoder.blocks[-1])
    assert feature_scale(tower) == single
    last, added = tower.encoder.blocks[-1], load_model("align-mini").vision_model.encoder.blocks[-1]
    assert last is not added
    added.projection.apply_dropout = True
    tower.encoder.blocks[-1] = added
    assert feature_scale(tower) == 2 * single


@pytest.mark.parametrize("name", ["swish", "silu", "gelu", "relu"])
def test_symmetric_activations_need_no_scale(name):
    from transformers.activations import ACT2FN

    features = torch.linspace(-40, 40, 8001, dtype=torch.float64)
    torch.testing.assert_close(ACT2FN[name](features) - ACT2FN[name](-features), features)
    assert feature_scale(SimpleNamespace(config=SimpleNamespace(hidden_act=name))) == 1


def test_refuses_a_tower_or_head_that_does_not_fit(tiny):
    tower = SimpleNamespace(config=SimpleNamespace(hidden_act="tanh"))
    with pytest.raises(CheckpointError, match="activation to be one of gelu, relu, silu, swish, relu6, but got 'tanh'"):
        feature_scale(tower)
    with pytest.raises(CheckpointError, match=r"Expected the head to read 64 features, .* but got 63"):
        build_classifier(
            load_model(tiny), Head(torch.zeros(2, 63), torch.zeros(2), ("a", "b"), torch.zeros(2, 63), torch.zeros(2))
        )


@pytest.mark.parametrize("trained", ["tiny"], indirect=True)
def test_a_head_of_several_labels_says_so(trained, tiny, tmp_path):
    """The pipeline itself is asked in test_several_labels.py."""
    assert not read_head(trained.head).is_multilabel
    assert "problem_type" not in json.loads((trained.folder / "config.json").read_text())
    objective = Classification()
    objective.start(torch.eye(5, 64), torch.zeros(5))
    write_head(build_head(objective, CLASSES, is_multilabel=True), tmp_path / "head.safetensors")
    head = read_head(tmp_path / "head.safetensors")
    assert head.is_multilabel
    assert head.classes == CLASSES
    assert build_classifier(load_model(tiny), head).config.problem_type == "multi_label_classification"


def test_refuses_a_head_that_is_missing_or_none(tmp_path):
    with pytest.raises(CheckpointError, match="hold a trained head, but got"):
        read_head(tmp_path / "head.safetensors")
    (tmp_path / "head.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="hold a trained head, but got"):
        read_head(tmp_path / "head.safetensors")


@pytest.mark.parametrize("trained", ["tiny"], indirect=True)
def test_existing_folder_is_refused(trained):
    with pytest.raises(FileExistsError, match="Remove it or pass --overwrite"):
        export_again(trained, trained.folder)


@pytest.mark.parametrize("trained", ["tiny"], indirect=True)
def test_card_shows_how_to_load_it(trained, tmp_path):
    classifier.write_classifier_card(tmp_path, "pets", "align-mini", {"after": {"test/accuracy": 0.975}}, trained.proof)
    card = (tmp_path / "README.md").read_text()
    assert "base_model: align-mini" in card
    assert "pipeline_tag: image-classification" in card
    assert "| test/accuracy | 97.5 % |" in card
