"""The meter of forgetting against SciPy, and that it moves with the model and with nothing else."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from finetune.drift import drift, vocabulary_scores
from finetune.shipped import shipped_folder
from finetune.task import AlignTask


def test_drift_is_scipys_divergence():
    generator = torch.Generator().manual_seed(0)
    before, after = (0.2 * torch.randn(5, 30, generator=generator) for _ in range(2))
    p, q = ((scores.double() / 0.05).softmax(dim=-1).numpy() for scores in (before, after))
    expected = np.mean([jensenshannon(*pair, base=2) ** 2 for pair in zip(p, q, strict=True)])
    assert drift(before, after, 0.05) == pytest.approx(expected)


def test_drift_is_zero_without_change_and_bounded():
    scores = torch.eye(3)
    assert drift(scores, scores, 0.05) == 0
    assert drift(scores, scores[:, [1, 2, 0]], 1e-4) == pytest.approx(1)
    assert drift(scores, scores + 0.5, 0.05) == pytest.approx(0, abs=1e-12)  # no word gains on another


def test_scores_are_those_of_plain_embeddings(tiny, labels):
    task = AlignTask(tiny, None, None)
    scores = vocabulary_scores(task, labels)
    words = (shipped_folder("datasets") / "align_mini" / "imagenet_classes.txt").read_text().splitlines()
    tests = labels.rows.indices("test")
    assert scores.shape == (len(tests), 1000)
    assert len(words) == 1000
    texts = labels.processor(text=[f"a photo of a {words[7]}."], return_tensors="pt")
    with torch.no_grad():
        batch = next(iter(labels.test_dataloader()))
        text = task.towers.align.get_text_features(**texts).pooler_output
        image = task.towers.align.get_image_features(pixel_values=batch.pixel_values).pooler_output
    expected = torch.nn.functional.cosine_similarity(image, text)
    torch.testing.assert_close(scores[: len(expected), 7], expected, atol=1e-5, rtol=0)


def test_many_images_are_sampled_evenly(tiny, labels, monkeypatch):
    monkeypatch.setattr("finetune.drift.IMAGES", 3)
    everything = vocabulary_scores(AlignTask(tiny, None, None), labels)
    assert len(everything) == 3
