"""Interpolation and temperature in one place, against plain peft, plain transformers and NumPy."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import AlignModel, AutoModelForImageClassification

from finetune.core.errors import CheckpointError
from finetune.core.files import read_json
from finetune.export.choose_interpolation import Choice
from finetune.export.classifier import ImageClassifier
from finetune.export.merged import MergedCheckpoint
from finetune.export.trained import TrainedModel
from finetune.run.folder import RunFolder

from ..fingerprints import fingerprint_weights
from .runs import TEMPERATURE, adapt, open_trained, train_head, write_run

INTERPOLATIONS = [0.0, 0.5, 1.0]
FITTED = 0.0123
EVERYWHERE = pytest.mark.parametrize(
    ("interpolation", "fitted"),
    [
        *((0.0, None), (0.5, FITTED), (1.0, None)),
        *(pytest.param(*values, marks=pytest.mark.slow) for values in ((0.0, FITTED), (0.5, None), (1.0, FITTED))),
    ],
)


def interpolate_by_hand(base, run, interpolation) -> AlignModel:
    """The base's weights, and those that plain peft merges, averaged by NumPy in a plain `AlignModel`."""
    model = AlignModel.from_pretrained(base.folder)
    weights = {name: tensor.numpy().astype(np.float64) for name, tensor in model.state_dict().items()}
    adapted = PeftModel.from_pretrained(AlignModel.from_pretrained(base.folder), run.adapter)
    merged = {name: tensor.numpy() for name, tensor in adapted.merge_and_unload().state_dict().items()}
    merged["temperature"] = np.float64(read_json(run.adapter / "temperature.json")["temperature"])
    averages = {name: (1 - interpolation) * weights[name] + interpolation * merged[name] for name in weights}
    model.load_state_dict({name: torch.as_tensor(average) for name, average in averages.items()})
    return model


@torch.no_grad()
def ask(model, inputs) -> dict[str, torch.Tensor]:
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    image = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
    text = model.get_text_features(**texts).pooler_output
    embeds = {"image_embeds": normalize(image, dim=-1), "text_embeds": normalize(text, dim=-1)}
    return {"image_features": image, **embeds, "temperature": model.temperature.detach()}


@EVERYWHERE
def test_merged_folder_is_what_plain_peft_and_numpy_make(base, run, tmp_path, interpolation, fitted):
    trained = open_trained(run, base, interpolation, fitted)
    MergedCheckpoint(trained).write(tmp_path)
    inputs = load_file(run.witness)
    expected = ask(interpolate_by_hand(base, run, interpolation), inputs)
    if fitted is not None:
        expected["temperature"] = torch.tensor(fitted)
    found = ask(AlignModel.from_pretrained(tmp_path), inputs)
    for name in ("image_embeds", "text_embeds"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)
        torch.testing.assert_close(trained.witness[name], expected[name], atol=1e-5, rtol=0)
    torch.testing.assert_close(found["temperature"], expected["temperature"], atol=0, rtol=1e-6)
    assert trained.witness["temperature"].equal(found["temperature"])
    assert trained.fingerprint == fingerprint_weights(tmp_path)


def test_the_models_of_the_test_above_differ(base, run):
    inputs = load_file(run.witness)
    answers = [ask(interpolate_by_hand(base, run, interpolation), inputs) for interpolation in INTERPOLATIONS]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        for name in ("image_embeds", "text_embeds", "temperature"):
            assert (answers[one][name] - answers[other][name]).abs().max() > 1e-3


@EVERYWHERE
def test_classifier_is_the_interpolated_tower_and_head_scaled_by_the_temperature(
    base, head_run, tmp_path, interpolation, fitted
):
    trained = open_trained(head_run, base, interpolation, fitted)
    artifact = ImageClassifier.of(trained)
    artifact.write(tmp_path)
    inputs, stored = load_file(head_run.witness), load_file(head_run.head)
    features = ask(interpolate_by_hand(base, head_run, interpolation), inputs)["image_features"].double().numpy()
    parts = {name: tensor.double().numpy() for name, tensor in stored.items()}
    weight, bias = (
        (1 - interpolation) * parts[f"start_{name}"] + interpolation * parts[name] for name in ("weight", "bias")
    )
    scale = 1.0 if fitted is None else TEMPERATURE / fitted
    expected = scale * (features @ weight.T + bias)
    with torch.no_grad():
        logits = AutoModelForImageClassification.from_pretrained(tmp_path)(inputs["pixel_values"]).logits
    close = {"rtol": 0, "atol": 1e-5 * np.abs(expected).max()}
    np.testing.assert_allclose(logits.numpy(), expected, **close)
    np.testing.assert_allclose(artifact.witness()["logits"].numpy(), expected, **close)
    assert trained.model.temperature.item() == pytest.approx(
        interpolate_by_hand(base, head_run, interpolation).temperature.item()
    )  # the fitted one is that of the head's scores


@pytest.mark.parametrize("fitted", [None, FITTED])
def test_at_interpolation_one_the_answers_are_those_of_the_adapted_unmerged_model(base, run, tmp_path, opener, fitted):
    """A witness that deviates by less than the tolerance stays as it is, and the proof says by how much."""
    for path in (run.adapter, run.processor):
        (tmp_path / path.name).symlink_to(path)
    recorded = load_file(run.witness)
    recorded["image_embeds"][0, 0] += 8e-6
    save_file(recorded, tmp_path / "witness.safetensors")
    tampered = RunFolder(tmp_path)
    merged = MergedCheckpoint(open_trained(tampered, base, 1.0, fitted))
    proof = merged.export(tampered.merged, "birds", {}, fresh=opener)
    own = load_file(tampered.merged / "witness.safetensors")
    for name in ("pixel_values", "input_ids", "attention_mask", "image_embeds", "text_embeds"):
        assert own[name].equal(recorded[name])
    assert own["temperature"].equal(torch.tensor(TEMPERATURE if fitted is None else fitted))
    assert 7e-6 < proof["max_abs_difference"]["image"] < 1e-5
    assert proof["max_abs_difference"]["text"] < 5e-6


def test_head_alone_leaves_the_towers_the_bases(base, head_run, batch, tmp_path):
    towers = adapt(base, None, None)
    towers.temperature.data.copy_(base.load().temperature)
    run = write_run(tmp_path, base, towers, batch, train_head(towers, batch))
    trained = TrainedModel(run, base, Choice(1.0))
    assert MergedCheckpoint.of(trained) is None
    assert isinstance(ImageClassifier.of(trained), ImageClassifier)
    assert trained.fingerprint == base.fingerprint
    assert trained.unchanged_towers() == {"image": True, "text": True}
    assert ImageClassifier.of(TrainedModel(head_run, base, Choice(1.0))) is not None


def test_run_without_a_head_has_no_classifier(base, run):
    trained = TrainedModel(run, base, Choice(1.0))
    assert (trained.head, trained.trained_head) == (None, None)
    assert ImageClassifier.of(trained) is None
    assert isinstance(MergedCheckpoint.of(trained), MergedCheckpoint)


@pytest.mark.parametrize("content", [None, b"", b"nothing of it"])
def test_witness_that_is_missing_or_damaged_is_refused(base, run, tmp_path, content):
    (tmp_path / "adapter").symlink_to(run.adapter)
    if content is not None:
        (tmp_path / "witness.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"Expected .*witness\.safetensors to hold a run's witness, but got"):
        _ = TrainedModel(RunFolder(tmp_path), base, Choice(1.0)).model
