import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from finetune.core.types import Batch
from finetune.objectives import Contrastive
from finetune.objectives.contrastive import anchor_losses


def reference_logits(embeddings):
    images, texts = (features.detach().double().numpy() for features in embeddings[:2])
    images = images / np.linalg.norm(images, axis=1, keepdims=True)
    texts = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    return images @ texts.T / float(embeddings.temperature.detach())


def reference_loss(logits, mask, smoothing, weights):
    """The docstring's formula, one candidate list at a time."""
    rows = np.zeros(len(logits))
    for direction, positive in ((logits, mask), (logits.T, mask.T)):
        for i in range(len(logits)):
            negatives = direction[i, ~positive[i]]
            terms = []
            for p in np.flatnonzero(positive[i]):
                copies = positive[i].sum()
                candidates = np.concatenate([np.repeat(direction[i, p], copies), negatives])
                target = np.full(len(candidates), smoothing / len(candidates))
                target[:copies] += (1 - smoothing) / copies
                log_probabilities = candidates - np.log(np.exp(candidates).sum())
                terms.append(-(target * log_probabilities).sum() - np.log(copies))
            rows[i] += np.mean(terms) / 2 if terms else 0.0
    return (rows * weights).sum() / weights.sum()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [1, 2, 7])
def test_unique_rows_give_plain_info_nce(make_batch, make_embeddings, size, seed):
    embeddings = make_embeddings(size, seed)
    logits = reference_logits(embeddings)
    to_text = np.log(np.exp(logits).sum(1)) - logits.diagonal()
    to_image = np.log(np.exp(logits).sum(0)) - logits.diagonal()
    loss = Contrastive()(embeddings, make_batch(size)).detach()
    assert loss.item() == pytest.approx((to_text.mean() + to_image.mean()) / 2, abs=2e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_unique_rows_have_the_gradient_of_torch_cross_entropy(make_batch, make_embeddings, smoothing):
    embeddings = make_embeddings(6)
    logits = embeddings.image_embeds @ embeddings.text_embeds.T / embeddings.temperature
    target = torch.arange(6)
    expected = (
        cross_entropy(logits, target, label_smoothing=smoothing)
        + cross_entropy(logits.T, target, label_smoothing=smoothing)
    ) / 2
    loss = Contrastive(smoothing)(embeddings, make_batch(6))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, embeddings), torch.autograd.grad(expected, embeddings))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(8))
def test_repeated_rows_equal_the_reference(make_batch, make_embeddings, seed, smoothing):
    random = np.random.default_rng(seed)
    ids = {name: random.integers(0, 6, 9).tolist() for name in ("images", "captions")}
    labels = random.integers(-1, 3, 9).tolist() if seed % 2 else None
    batch = make_batch(9, **ids, labels=labels, weights=random.random(9).tolist())
    embeddings = make_embeddings(9, seed)
    mask = np.array(
        [
            [
                batch.caption_ids[i] == batch.caption_ids[j]
                or (
                    batch.label_ids[i] == batch.label_ids[j]
                    if batch.label_ids[i] >= 0 and batch.label_ids[j] >= 0
                    else batch.image_ids[i] == batch.image_ids[j]
                )
                for j in range(9)
            ]
            for i in range(9)
        ]
    )
    expected = reference_loss(reference_logits(embeddings), mask, smoothing, batch.weights.double().numpy())
    assert float(Contrastive(smoothing)(embeddings, batch).detach()) == pytest.approx(expected, rel=1e-5, abs=2e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(6))
def test_several_labels_equal_the_reference(make_batch, make_embeddings, seed, smoothing):
    """Images without labels, and texts that are true of no image, are negatives of others and no anchors."""
    random = np.random.default_rng(seed)
    targets, named = random.random((9, 5)) < 0.3, random.integers(0, 5, 9)
    targets[:2], targets[2, named[2]] = False, True
    batch = make_batch(9, labels=named.tolist(), targets=targets.tolist(), weights=random.random(9).tolist())
    embeddings = make_embeddings(9, seed)
    weights = batch.weights.double().numpy()
    expected = reference_loss(reference_logits(embeddings), targets[:, named], smoothing, weights)
    loss = Contrastive(smoothing)(embeddings, batch)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5, abs=2e-5)
    gradients = torch.autograd.grad(loss, embeddings)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0][:2].any()


def test_images_without_labels_alone_teach_nothing(make_batch, make_embeddings):
    embeddings = make_embeddings(4)
    loss = Contrastive(0.1)(embeddings, make_batch(4, labels=[0, 1, 2, 0], targets=[[False] * 3] * 4))
    assert loss.item() == 0.0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, embeddings))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("same", [{"captions": [3] * 5}, {"images": [3] * 5}, {"labels": [3] * 5}])
def test_all_equal_gives_loss_and_gradient_of_exactly_zero(make_batch, make_embeddings, same, smoothing):
    embeddings = make_embeddings(5)
    loss = Contrastive(smoothing)(embeddings, make_batch(5, **same))
    assert loss.item() == 0.0
    for gradient in torch.autograd.grad(loss, embeddings):
        assert not gradient.any()


def test_positives_of_one_anchor_are_not_pushed_apart():
    logits = torch.tensor([[5.0, -5.0, 0.0]], requires_grad=True)
    anchor_losses(logits, torch.tensor([[True, True, False]]), 0.0).sum().backward()
    assert logits.grad[0, 0] < 0
    assert logits.grad[0, 1] < logits.grad[0, 0]
    assert logits.grad[0, 2] > 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_permuted_rows_give_the_same_loss(make_batch, make_embeddings, smoothing):
    batch = make_batch(
        8,
        images=[0, 0, 1, 2, 3, 4, 5, 5],
        captions=[0, 1, 2, 2, 2, 3, 4, 4],
        weights=[1.0, 2, 3, 4, 5, 6, 7, 8],
    )
    embeddings = make_embeddings(8)
    order = torch.tensor([3, 7, 0, 2, 6, 1, 5, 4])
    shuffled = embeddings._replace(
        image_features=embeddings.image_features[order], text_features=embeddings.text_features[order]
    )
    loss = Contrastive(smoothing)(shuffled, Batch(*(field[order] for field in batch)))
    torch.testing.assert_close(loss, Contrastive(smoothing)(embeddings, batch))


def test_a_weight_counts_as_a_repetition_of_the_row_loss(make_batch, make_embeddings):
    embeddings = make_embeddings(4)
    row_losses = [
        Contrastive()(embeddings, make_batch(4, weights=[float(i == row) for i in range(4)])).item() for row in range(4)
    ]
    loss = Contrastive()(embeddings, make_batch(4, weights=[2.0, 0.0, 1.0, 1.0]))
    assert loss.item() == pytest.approx((2 * row_losses[0] + row_losses[2] + row_losses[3]) / 4, rel=1e-5)


def test_weights_of_zero_give_zero(make_batch, make_embeddings):
    embeddings = make_embeddings(3)
    loss = Contrastive()(embeddings, make_batch(3, weights=[0.0] * 3))
    assert loss.item() == 0.0
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, embeddings))


@pytest.mark.parametrize("temperature", [0.05, 1e-3, 10.0])
@pytest.mark.parametrize("labels", [[0] * 6, [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1], list(range(6)), None])
def test_gradients_are_finite(make_batch, make_embeddings, labels, temperature):
    embeddings = make_embeddings(6)._replace(temperature=torch.tensor(temperature).requires_grad_())
    loss = Contrastive(0.1)(embeddings, make_batch(6, labels=labels))
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, embeddings))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(make_batch, make_embeddings, dtype):
    embeddings = make_embeddings(6, dtype=dtype)
    exact = embeddings._replace(
        image_features=embeddings.image_features.float(), text_features=embeddings.text_features.float()
    )
    loss = Contrastive()(embeddings, make_batch(6))
    assert loss.dtype == torch.float32
    assert loss.equal(Contrastive()(exact, make_batch(6)))


def test_autocast_does_not_reach_the_loss(make_batch, make_embeddings):
    embeddings = make_embeddings(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = Contrastive()(embeddings, make_batch(6))
    assert loss.equal(Contrastive()(embeddings, make_batch(6)))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 1.5, float("nan")])
def test_refuses_a_smoothing_out_of_range(smoothing):
    with pytest.raises(ValueError, match=rf"Expected label_smoothing to be in \[0, 1\), but got {smoothing}\."):
        Contrastive(smoothing)


def test_equal_texts_give_the_gradient_of_soft_targets_to_images():
    """From image to text a label table is learned as with the plain softmax over the whole batch."""
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))[:, [0, 0, 0, 1, 1, 2]].requires_grad_()
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    mask = labels[:, None] == labels
    expected = cross_entropy(logits, mask / mask.sum(1, keepdim=True), reduction="none", label_smoothing=0.1)
    found = anchor_losses(logits, mask, 0.1)
    torch.testing.assert_close(found, expected - mask.sum(1).log())
