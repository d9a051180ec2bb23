"""The meter of forgetting against NumPy, and that it moves with the model and with nothing else."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from finetune.core.shipped import shipped_folder
from finetune.evaluation.drift import Probe, drift
from finetune.evaluation.probe import probe

from ..pixels import scaled


def seen(seed: int, images: int = 7, words: int = 30) -> Probe:
    generator = torch.Generator().manual_seed(seed)
    return Probe(*(normalize(torch.randn(rows, 5, generator=generator), dim=-1) for rows in (images, words)))


def test_drift_is_the_complement_of_numpys_concordance():
    before, other = seen(0), seen(1)
    after = Probe(*(normalize(a + 0.3 * b, dim=-1) for a, b in zip(before, other, strict=True)))
    residues = []
    for each in (before, after):
        scores = each.image_embeds.double().numpy() @ each.text_embeds.double().numpy().T
        rows, columns = np.indices(scores.shape).reshape(2, -1)
        dummies = np.hstack([np.eye(7)[rows], np.eye(30)[columns]])  # an effect of each image and of each word
        effects = np.linalg.lstsq(dummies, scores.ravel(), rcond=None)[0]
        residues.append(scores.ravel() - dummies @ effects)
    covariances = np.cov(residues)
    expected = 1 - 2 * covariances[0, 1] / np.trace(covariances)
    assert 0.02 < expected < 0.5
    assert drift(before, after) == pytest.approx(expected)


def test_an_unchanged_model_has_not_drifted():
    assert drift(seen(0), seen(0)) == 0
    turned = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(2))).Q
    assert drift(seen(0), Probe(*(each @ turned for each in seen(0)))) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("tower", Probe._fields)
def test_a_collapsed_tower_is_full_drift(tower):
    """All images are one, or all words are, and the other tower is the base's."""
    whole = seen(0)
    embeds = getattr(whole, tower)
    collapsed = whole._replace(**{tower: embeds[:1].expand_as(embeds)})
    assert drift(whole, collapsed) == pytest.approx(1)
    assert drift(collapsed, collapsed) == 0


def test_drift_is_at_most_one():
    whole = seen(0)
    assert drift(whole, whole._replace(image_embeds=-whole.image_embeds)) == 1  # turned round
    assert drift(seen(0, images=1), seen(1, images=1)) == 0  # nothing to tell a single image from


def test_either_tower_counts():
    before, other = seen(0), seen(1)
    changes = [drift(before, before._replace(**{name: getattr(other, name)})) for name in Probe._fields]
    assert min(changes) > 0.5


def test_probe_is_plain_embeddings(towers, labels, cpu):
    found = probe(towers, labels, cpu)
    words = (shipped_folder("datasets") / "align_mini" / "imagenet_classes.txt").read_text().splitlines()
    assert found.image_embeds.shape == (len(labels.rows.indices("test")), 64)
    assert found.text_embeds.shape == (len(words), 64) == (1000, 64)
    texts = labels.processor(text=[f"a photo of a {words[7]}."], return_tensors="pt")
    with torch.no_grad():
        batch = next(iter(labels.test_dataloader()))
        text = towers.align.get_text_features(**texts).pooler_output
        pixels = scaled(batch.pixel_values, labels.processor.image_processor)
        image = towers.align.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(found.text_embeds[7:8], normalize(text, dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.image_embeds[: len(image)], normalize(image, dim=-1), atol=1e-5, rtol=0)


def test_many_images_are_sampled_evenly(towers, labels, cpu, monkeypatch):
    every = probe(towers, labels, cpu).image_embeds
    monkeypatch.setattr("finetune.evaluation.probe.IMAGES", 3)
    found = probe(towers, labels, cpu).image_embeds
    spaced = [0, (len(every) - 1) // 2, len(every) - 1]
    torch.testing.assert_close(found, every[spaced], atol=1e-6, rtol=0)
