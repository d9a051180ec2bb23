"""What objectives are made of: cosine logits in float32 from whatever precision, and weighted means."""

import numpy as np
import pytest
import torch

from finetune.objectives import Contrastive, Sigmoid, cosine_logits
from finetune.objectives.objective import anchor_pairs, weighted_mean


def test_class_scores_are_cosines_over_the_temperature():
    scores = cosine_logits(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor(0.5))
    torch.testing.assert_close(scores, torch.tensor([[1.2, 1.6]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(make_embeddings, dtype):
    features = make_embeddings(6, dtype=dtype)
    exact = cosine_logits(features.image_features.float(), features.text_features.float(), torch.tensor(0.05))
    with torch.autocast("cpu", dtype=dtype):
        found = cosine_logits(features.image_features, features.text_features, torch.tensor(0.05))
    assert found.dtype == torch.float32
    assert found.equal(exact)


def test_double_precision_stays(make_batch, make_embeddings):
    features = make_embeddings(6, dtype=torch.float64)
    images, texts = (part.detach().numpy() for part in (features.image_features, features.text_features))
    images, texts = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (images, texts))
    features = features._replace(temperature=torch.tensor(0.05, dtype=torch.float64))
    for anchors in (slice(None), slice(2, 5)):
        of_images, of_texts = (logits.detach().numpy() for logits, _ in anchor_pairs(features, make_batch(6), anchors))
        np.testing.assert_allclose(of_images, (images[anchors] @ texts.T) / 0.05, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(of_texts, (texts[anchors] @ images.T) / 0.05, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("missing", ["image_features", "text_features"])
@pytest.mark.parametrize("objective", [Contrastive(), Sigmoid()])
def test_a_loss_of_pairs_needs_both_towers(make_batch, make_embeddings, objective, missing):
    embeddings = make_embeddings(3)._replace(**{missing: None})
    with pytest.raises(ValueError, match=r"Expected features of both towers, but got those of one\. Embed the batch"):
        objective(embeddings, make_batch(3))


def test_mean_counts_rows_by_weight():
    random = np.random.default_rng(0)
    losses, weights = random.random(7), random.random(7)
    found = weighted_mean(torch.from_numpy(losses), torch.from_numpy(weights))
    assert found.item() == pytest.approx(np.average(losses, weights=weights))
    assert weighted_mean(torch.ones(3), torch.zeros(3)).item() == 0
