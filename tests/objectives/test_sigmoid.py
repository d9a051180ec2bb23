import numpy as np
import pytest
import torch

from finetune.core.types import Batch
from finetune.objectives import Sigmoid, positive_mask


def reference_loss(embeddings, mask, bias, weights):
    """SigLIP's pseudo-code with the bias counted from the log odds of the batch, one pair at a time."""
    images, texts = (features.detach().double().numpy() for features in embeddings[:2])
    rows = np.zeros(len(mask))
    odds = mask.sum() / (~mask).sum()
    for i in range(len(mask)):
        for j in range(len(mask)):
            cosine = images[i] @ texts[j] / np.linalg.norm(images[i]) / np.linalg.norm(texts[j])
            logit = cosine / float(embeddings.temperature.detach()) + bias + np.log(odds)
            loss = np.log1p(np.exp(-logit if mask[i, j] else logit))
            rows[i] += loss / 2
            rows[j] += loss / 2
    return (rows * weights).sum() / weights.sum()


@pytest.mark.parametrize("bias", [0.0, -2.0])
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_reference(make_batch, make_embeddings, seed, bias):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, 7).tolist() if seed % 2 else None
    batch = make_batch(7, labels=labels, weights=random.random(7).tolist())
    embeddings = make_embeddings(7, seed)
    expected = reference_loss(embeddings, positive_mask(batch).numpy(), bias, batch.weights.double().numpy())
    assert Sigmoid(bias)(embeddings, batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_several_labels_equal_the_reference(make_batch, make_embeddings, seed):
    random = np.random.default_rng(seed)
    targets, named = random.random((7, 4)) < 0.4, random.integers(0, 4, 7)
    targets[0], targets[1, named[1]] = False, True
    batch = make_batch(7, labels=named.tolist(), targets=targets.tolist(), weights=random.random(7).tolist())
    embeddings = make_embeddings(7, seed)
    expected = reference_loss(embeddings, targets[:, named], -1.0, batch.weights.double().numpy())
    assert Sigmoid(-1.0)(embeddings, batch).item() == pytest.approx(expected, rel=1e-5)


def test_unique_rows_give_the_papers_loss(make_batch, make_embeddings):
    """-sum log sigmoid(z (t x.y + b)) / B, with t = 1 / 0.05 and b = bias - log(B - 1)."""
    embeddings = make_embeddings(6)
    logits = embeddings.image_embeds @ embeddings.text_embeds.T / 0.05 + 0.5 - np.log(5)
    signs = 2 * torch.eye(6) - 1
    expected = -torch.nn.functional.logsigmoid(signs * logits).sum() / 6
    torch.testing.assert_close(Sigmoid(0.5)(embeddings, make_batch(6)), expected)


@pytest.mark.parametrize("labels", [None, [0, 0, 0, 0, 1, 1, 2, 3]])
def test_starts_calibrated_where_similarities_are_zero(make_batch, make_embeddings, labels):
    """Orthogonal features: the bias has no gradient, as the predicted share of positives is the true one."""
    embeddings = make_embeddings(8)._replace(image_features=torch.eye(16)[:8], text_features=torch.eye(16)[8:])
    objective = Sigmoid()
    objective(embeddings, make_batch(8, labels=labels)).backward()
    assert float(objective.bias.grad) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("size", [1, 5])
def test_a_batch_without_negatives_teaches_nothing(make_batch, make_embeddings, size):
    embeddings, objective = make_embeddings(size), Sigmoid()
    loss = objective(embeddings, make_batch(size, captions=[0] * size))
    assert loss.item() == 0.0
    for gradient in torch.autograd.grad(loss, [*embeddings, objective.bias]):
        assert not gradient.any()


def test_a_batch_without_positives_teaches_nothing(make_batch, make_embeddings):
    embeddings, objective = make_embeddings(5), Sigmoid()
    loss = objective(embeddings, make_batch(5, labels=[0, 1, 2, 0, 1], targets=[[False] * 3] * 5))
    assert loss.item() == 0.0
    for gradient in torch.autograd.grad(loss, [*embeddings, objective.bias]):
        assert not gradient.any()


@pytest.mark.parametrize("temperature", [0.05, 1e-3, 10.0])
def test_gradients_are_finite(make_batch, make_embeddings, temperature):
    embeddings = make_embeddings(6)._replace(temperature=torch.tensor(temperature).requires_grad_())
    loss = Sigmoid()(embeddings, make_batch(6, labels=[0, 0, 0, 0, 0, 1]))
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, embeddings))


def test_permuted_rows_give_the_same_loss(make_batch, make_embeddings):
    batch = make_batch(5, captions=[0, 1, 1, 2, 3], weights=[1.0, 2.0, 3.0, 4.0, 5.0])
    embeddings = make_embeddings(5)
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = embeddings._replace(
        image_features=embeddings.image_features[order], text_features=embeddings.text_features[order]
    )
    loss = Sigmoid()(shuffled, Batch(*(field[order] for field in batch)))
    torch.testing.assert_close(loss, Sigmoid()(embeddings, batch))


def test_half_precision_is_computed_in_float32(make_batch, make_embeddings):
    embeddings = make_embeddings(6, dtype=torch.bfloat16)
    exact = embeddings._replace(
        image_features=embeddings.image_features.float(), text_features=embeddings.text_features.float()
    )
    assert Sigmoid()(embeddings, make_batch(6)).equal(Sigmoid()(exact, make_batch(6)))


def test_the_bias_is_trained(make_batch, make_embeddings):
    objective = Sigmoid(-1.5)
    objective(make_embeddings(4), make_batch(4)).backward()
    assert objective.bias.item() == -1.5
    assert objective.bias.grad is not None


@pytest.mark.parametrize("bias", [float("nan"), float("inf")])
def test_refuses_a_bias_that_is_not_finite(bias):
    with pytest.raises(ValueError, match=rf"Expected bias to be finite, but got {bias}\."):
        Sigmoid(bias)
