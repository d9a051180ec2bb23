"""What a training leaves as its witness, and what reproduces it, against plain peft and transformers."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import normalize
from transformers import AlignModel

from finetune.core.errors import CheckpointError
from finetune.export.witness import (
    INPUTS,
    TOLERANCE,
    ask_model,
    check_model,
    read_witness,
    require_close,
    write_witness,
)
from finetune.model.lora import TowerLora

from .runs import TEMPERATURE, adapt, train_head


@torch.no_grad()
def test_witness_holds_inputs_and_the_answers_of_the_unmerged_model(base, run, batch):
    recorded = read_witness(run.witness)
    assert recorded.keys() == {*INPUTS, "image_features", "image_embeds", "text_embeds", "temperature"}
    for name in INPUTS:
        assert recorded[name].equal(getattr(batch, name))
    adapted = PeftModel.from_pretrained(AlignModel.from_pretrained(base.folder), run.adapter).eval()
    image = adapted.get_image_features(pixel_values=batch.pixel_values).pooler_output
    text = adapted.get_text_features(input_ids=batch.input_ids, attention_mask=batch.attention_mask).pooler_output
    torch.testing.assert_close(recorded["image_features"], image, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(recorded["image_embeds"], normalize(image, dim=-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(recorded["text_embeds"], normalize(text, dim=-1), rtol=0, atol=1e-6)
    assert recorded["temperature"].equal(torch.tensor(TEMPERATURE))


def test_witness_is_float32_of_a_model_in_evaluation_whatever_it_was_trained_in(base, batch, tmp_path):
    image_lora = TowerLora(rank=2, dropout=0.5)
    for name in ("evaluated", "training"):
        towers = adapt(base, image_lora, TowerLora(rank=2, dropout=0.5))
        if name == "training":
            towers.double().train()
        write_witness(towers, batch, tmp_path / name)
    evaluated, training = (load_file(tmp_path / name) for name in ("evaluated", "training"))
    assert {training[name].dtype for name in training.keys() - INPUTS} == {torch.float32}
    assert all(training[name].equal(evaluated[name]) for name in evaluated)


def test_head_answers_with_logits(base, head_run):
    recorded, head = load_file(head_run.witness), load_file(head_run.head)
    expected = recorded["image_features"].double() @ head["weight"].T.double() + head["bias"].double()
    torch.testing.assert_close(recorded["logits"].double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert "logits" not in ask_model(base.load(), recorded)


@pytest.fixture
def merged(base, batch):
    """A model with a head, and a witness that it has made itself."""
    model = base.load()
    head = train_head(adapt(base, None, None), batch)
    inputs = {name: getattr(batch, name) for name in INPUTS}
    return model, head, {**inputs, **ask_model(model, inputs, head)}


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("image_embeds", 2e-5),
        ("text_embeds", -2e-5),
        ("text_embeds", float("nan")),
        ("image_features", float("inf")),
        ("temperature", 1e-7),
    ],
)
def test_model_that_answers_otherwise_is_refused(merged, name, fault):
    model, head, witness = merged
    check_model(model, witness, head)
    changed = witness[name].clone()
    changed.view(-1)[-1] += fault
    message = f"Expected the merged model to reproduce the witness within {TOLERANCE} of the adapted model, but got"
    with pytest.raises(CheckpointError, match=rf"{message} differences .*'{name}'"):
        check_model(model, {**witness, name: changed}, head)


@pytest.mark.parametrize("name", ["image_features", "logits"])
def test_features_and_logits_are_compared_relative_to_the_largest(merged, name):
    model, head, witness = merged
    largest = float(witness[name].abs().max())
    for share, accepted in ((0.9e-5, True), (1.2e-5, False)):
        changed = witness[name].clone()
        changed.view(-1)[0] += share * largest
        if accepted:
            check_model(model, {**witness, name: changed}, head)
        else:
            with pytest.raises(CheckpointError, match="Expected the merged model to reproduce the witness"):
                check_model(model, {**witness, name: changed}, head)


def test_differences_may_reach_the_tolerance_and_exact_answers_none():
    require_close("it", {"image_embeds": TOLERANCE, "temperature": 0.0}, exact=("temperature",))
    with pytest.raises(CheckpointError, match=r"differences \{'image_embeds': 1\.1e-05\}"):
        require_close("it", {"image_embeds": 1.1e-5})
    with pytest.raises(CheckpointError, match="'temperature': 1e-09"):
        require_close("it", {"image_embeds": 0.0, "temperature": 1e-9}, exact=("temperature",))
    with pytest.raises(CheckpointError, match="'text_embeds': nan"):
        require_close("it", {"image_embeds": 0.0, "text_embeds": float("nan")})


@pytest.mark.parametrize("content", [None, b"", b"nothing of it"])
def test_a_file_that_is_no_witness_is_refused(tmp_path, content):
    path = tmp_path / "witness.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"Expected {path} to hold a run's witness, but got: .*Run it again\."):
        read_witness(path)
