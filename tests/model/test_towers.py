"""The towers embed as plain transformers does, and BatchNorm stays as it was."""

import pytest
import torch
from transformers import AlignModel

from finetune.core.types import Texts
from finetune.model.base import Base
from finetune.model.lora import TowerLora, attach_lora
from finetune.model.towers import AlignTowers


def buffers(model) -> dict[str, bytes]:
    return {name: buffer.numpy().tobytes() for name, buffer in model.named_buffers()}


def test_features_and_logits_equal_plain_transformers(tiny, batch):
    plain = AlignModel.from_pretrained(tiny)
    with torch.no_grad():
        found = AlignTowers(Base.open(tiny).load(), False, 0.01)(batch)
        expected = plain(
            pixel_values=batch.pixel_values, input_ids=batch.input_ids, attention_mask=batch.attention_mask
        )
    torch.testing.assert_close(found.image_embeds, expected.image_embeds)
    torch.testing.assert_close(found.text_embeds, expected.text_embeds)
    logits = found.image_embeds @ found.text_embeds.T / found.temperature
    torch.testing.assert_close(logits, expected.logits_per_image)


@torch.no_grad()
def test_a_tower_that_was_not_asked_has_no_embeddings(tiny, batch):
    towers = AlignTowers(Base.open(tiny).load())
    both, texts = towers(batch), Texts(batch.input_ids, batch.attention_mask)
    images_alone, texts_alone = towers.image_embeddings(batch), towers.text_embeddings(texts)
    assert images_alone.image_embeds.equal(both.image_embeds)
    assert texts_alone.text_embeds.equal(both.text_embeds)
    for embeddings, tower in ((images_alone, "text"), (texts_alone, "image")):
        message = f"Expected {tower} features, but got none: the {tower} tower was not asked"
        with pytest.raises(ValueError, match=message):
            getattr(embeddings, f"{tower}_embeds")


def test_an_image_of_several_rows_is_computed_once_without_gradients_alone(tiny, batch):
    towers = AlignTowers(Base.open(tiny).load(), False, 0.01)
    pixels = batch.pixel_values[[0, 0, 0, 1, 2, 2, 0]]
    seen = []
    towers.align.vision_model.register_forward_hook(lambda *of: seen.append(len(of[2][0])))
    with torch.no_grad():
        found = towers.image_features(pixels)
    expected = towers.image_features(pixels)
    assert seen == [4, 7]
    torch.testing.assert_close(found, expected.detach())


def test_plain_transformers_overwrites_the_statistics_in_train_mode(tiny, batch):
    """The trap itself: should this fail one day, transformers has corrected the momentum."""
    plain = AlignModel.from_pretrained(tiny).train()
    before = buffers(plain)
    plain.get_image_features(pixel_values=batch.pixel_values)
    assert buffers(plain) != before


@pytest.mark.parametrize("stray", ["towers", "align", "vision_model", "one layer"])
def test_statistics_are_byte_identical_after_training_with_a_stray_train(tiny, batch, stray):
    towers = AlignTowers(attach_lora(Base.open(tiny).load(), TowerLora(rank=2), None), True, 0.01)
    before = buffers(towers.align)
    target = {
        "towers": towers,
        "align": towers.align,
        "vision_model": towers.align.vision_model,
        "one layer": towers.align.vision_model.embeddings.batchnorm,
    }[stray]
    optimizer = torch.optim.SGD([p for p in towers.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        target.train()
        towers(batch).image_embeds.sum().backward()
        optimizer.step()
    assert buffers(towers.align) == before


def test_temperature_is_held_above_its_bound(tiny):
    towers = AlignTowers(Base.open(tiny).load(), True, 0.02)
    towers.temperature.data.fill_(-3.0)
    towers.bound_temperature()
    assert towers.temperature.item() == pytest.approx(0.02)
    assert towers.temperature.requires_grad
    assert not AlignTowers(Base.open(tiny).load(), False, 0.02).temperature.requires_grad


def test_a_temperature_is_not_trained_unless_asked(tiny):
    towers = AlignTowers(Base.open(tiny).load())
    assert not towers.temperature.requires_grad
    towers.temperature.data.fill_(1e-9)
    towers.bound_temperature()
    assert towers.temperature.item() == pytest.approx(1e-9)


def test_bound_must_be_positive(tiny):
    with pytest.raises(ValueError, match="min_temperature to be positive"):
        AlignTowers(Base.open(tiny).load(), True, 0.0)
