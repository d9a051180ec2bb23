import numpy as np
import pytest
import torch

from finetune.core.errors import RecipeError
from finetune.core.types import Batch
from finetune.objectives import CrossEntropy

LABELS = [0, 2, 1, 2, 0, 2, 1]
TARGETS = [
    [True, True, False],
    [False, False, False],
    [False, False, True],
    [True, True, True],
    *[[False, True, True]] * 3,
]


def make_logits(seed=0, dtype=torch.float32) -> torch.Tensor:
    return (3 * torch.randn(7, 3, generator=torch.Generator().manual_seed(seed))).to(dtype).requires_grad_()


def reference_loss(logits, labels, weights, smoothing):
    """Softmax cross-entropy in float64, one row at a time."""
    losses = np.zeros(len(labels))
    for row, label in enumerate(labels):
        shifted = logits[row] - logits[row].max()
        log_probabilities = shifted - np.log(np.exp(shifted).sum())
        target = np.full(len(shifted), smoothing / len(shifted))
        target[label] += 1 - smoothing
        losses[row] = -(target * log_probabilities).sum()
    return (losses * weights).sum() / weights.sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weights", [None, [0.5, 3.0, 1.0]])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_reference(make_batch, seed, class_weights, smoothing):
    random = np.random.default_rng(seed)
    batch, logits = make_batch(7, labels=LABELS, weights=random.random(7).tolist()), make_logits(seed)
    weights = batch.weights.double().numpy() * np.asarray(class_weights or [1.0] * 3)[LABELS]
    expected = reference_loss(logits.detach().double().numpy(), LABELS, weights, smoothing)
    loss = CrossEntropy(class_weights, smoothing)(logits, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_equals_cross_entropy_of_torch(make_batch):
    logits, weights = make_logits(), [0.5, 3.0, 1.0]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS), torch.tensor(weights))
    loss = CrossEntropy(weights)(logits, make_batch(7, labels=LABELS))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weights", [None, [0.5, 3.0, 1.0]])
def test_several_labels_equal_the_reference(make_batch, class_weights, smoothing):
    """A yes-or-no question for each class: binary cross-entropy in float64, one at a time."""
    weights, shares = np.random.default_rng(0).random(7), class_weights or [1.0] * 3
    batch, logits = make_batch(7, labels=LABELS, targets=TARGETS, weights=weights.tolist()), make_logits()
    losses = np.zeros(7)
    for row, scores in enumerate(logits.detach().double().numpy()):
        for label, logit in enumerate(scores):
            yes = TARGETS[row][label] * (1 - smoothing) + smoothing / 2
            loss = yes * np.log1p(np.exp(-logit)) + (1 - yes) * np.log1p(np.exp(logit))
            losses[row] += shares[label] * loss / sum(shares)
    expected = (losses * weights).sum() / weights.sum()
    assert CrossEntropy(class_weights, smoothing)(logits, batch).item() == pytest.approx(expected, rel=1e-5)


def test_several_labels_equal_the_loss_of_transformers(make_batch):
    """`problem_type: multi_label_classification` is trained with BCEWithLogitsLoss there."""
    logits = make_logits()
    expected = torch.nn.BCEWithLogitsLoss()(logits, torch.tensor(TARGETS, dtype=torch.float32))
    torch.testing.assert_close(CrossEntropy()(logits, make_batch(7, labels=LABELS, targets=TARGETS)), expected)


def test_holds_nothing_that_is_trained_or_saved():
    objective = CrossEntropy([1.0, 2.0])
    assert list(objective.parameters()) == []
    assert list(objective.state_dict()) == []
    assert objective.class_weights.tolist() == [1.0, 2.0]


def test_permuted_rows_give_the_same_loss(make_batch):
    batch, logits = make_batch(7, labels=LABELS, weights=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), make_logits()
    order = torch.tensor([3, 0, 4, 2, 1, 6, 5])
    loss = CrossEntropy()(logits[order], Batch(*(field[order] for field in batch)))
    torch.testing.assert_close(loss, CrossEntropy()(logits, batch))


@pytest.mark.parametrize("targets", [None, TARGETS])
def test_autocast_changes_nothing(make_batch, targets):
    batch, objective = make_batch(7, labels=LABELS, targets=targets), CrossEntropy([0.5, 3.0, 1.0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(make_logits(), batch)
    assert loss.dtype == torch.float32
    assert loss.equal(objective(make_logits(), batch))


@pytest.mark.parametrize("targets", [None, TARGETS])
def test_weights_of_zero_give_zero(make_batch, targets):
    logits = make_logits()
    loss = CrossEntropy()(logits, make_batch(7, labels=LABELS, targets=targets, weights=[0.0] * 7))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, logits)[0].any()


def test_refuses_class_weights_that_do_not_fit():
    CrossEntropy([1.0, 2.0]).require_classes(2)
    CrossEntropy().require_classes(3)
    with pytest.raises(RecipeError, match=r"one number for each of the 3 classes, but got 2\. List one"):
        CrossEntropy([1.0, 2.0]).require_classes(3)
    for wrong in ([1.0, 0.0], [1.0, float("nan")], [float("inf")]):
        with pytest.raises(ValueError, match="Expected class_weights to be positive and finite, but got"):
            CrossEntropy(wrong)
    with pytest.raises(ValueError, match=r"Expected label_smoothing to be in \[0, 1\), but got 1\.0"):
        CrossEntropy(label_smoothing=1.0)
