import numpy as np
import pytest
import torch

from finetune.core.errors import RecipeError
from finetune.core.types import Batch, Embeddings
from finetune.objectives import Classification

LABELS = [0, 2, 1, 2, 0, 2, 1]


def started(classes=3, **arguments) -> Classification:
    objective = Classification(**arguments)
    generator = torch.Generator().manual_seed(7)
    class_embeds = torch.nn.functional.normalize(torch.randn(classes, 8, generator=generator), dim=-1)
    objective.start(class_embeds, torch.linspace(-0.2, 0.2, classes))
    return objective


def reference_loss(objective, features, labels, weights, smoothing):
    """Softmax cross-entropy in float64, one row at a time."""
    weight, bias = (tensor.detach().double().numpy() for tensor in (objective.weight, objective.bias))
    losses = np.zeros(len(labels))
    for row, label in enumerate(labels):
        logits = weight @ features[row] + bias
        log_probabilities = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        target = np.full(len(bias), smoothing / len(bias))
        target[label] += 1 - smoothing
        losses[row] = -(target * log_probabilities).sum()
    return (losses * weights).sum() / weights.sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weights", [None, [0.5, 3.0, 1.0]])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_reference(make_batch, make_embeddings, seed, class_weights, smoothing):
    random = np.random.default_rng(seed)
    batch = make_batch(7, labels=LABELS, weights=random.random(7).tolist())
    embeddings = make_embeddings(7, seed)
    objective = started(class_weights=class_weights, label_smoothing=smoothing)
    with torch.no_grad():
        objective.bias += torch.tensor([0.3, -0.2, 0.1])
    weights = batch.weights.double().numpy() * np.asarray(class_weights or [1.0] * 3)[LABELS]
    features = embeddings.image_features.detach().double().numpy()
    expected = reference_loss(objective, features, LABELS, weights, smoothing)
    assert objective(embeddings, batch).item() == pytest.approx(expected, rel=1e-5)


def test_equals_cross_entropy_of_torch(make_batch, make_embeddings):
    embeddings, weights = make_embeddings(7), [0.5, 3.0, 1.0]
    objective = started(class_weights=weights)
    expected = torch.nn.functional.cross_entropy(
        embeddings.image_features @ objective.weight.T + objective.bias, torch.tensor(LABELS), torch.tensor(weights)
    )
    torch.testing.assert_close(objective(embeddings, make_batch(7, labels=LABELS)), expected)


TARGETS = [
    [True, True, False],
    [False, False, False],
    [False, False, True],
    [True, True, True],
    *[[False, True, True]] * 3,
]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weights", [None, [0.5, 3.0, 1.0]])
def test_several_labels_equal_the_reference(make_batch, make_embeddings, class_weights, smoothing):
    """A yes-or-no question for each class: binary cross-entropy in float64, one at a time."""
    weights, shares = np.random.default_rng(0).random(7), class_weights or [1.0] * 3
    batch = make_batch(7, labels=LABELS, targets=TARGETS, weights=weights.tolist())
    embeddings, objective = make_embeddings(7), started(class_weights=class_weights, label_smoothing=smoothing)
    with torch.no_grad():
        objective.bias += torch.tensor([0.3, -0.2, 0.1])
    weight, bias = (tensor.detach().double().numpy() for tensor in (objective.weight, objective.bias))
    losses = np.zeros(7)
    for row, features in enumerate(embeddings.image_features.detach().double().numpy()):
        for label in range(3):
            logit = weight[label] @ features + bias[label]
            yes = TARGETS[row][label] * (1 - smoothing) + smoothing / 2
            loss = yes * np.log1p(np.exp(-logit)) + (1 - yes) * np.log1p(np.exp(logit))
            losses[row] += shares[label] * loss / sum(shares)
    expected = (losses * weights).sum() / weights.sum()
    assert objective(embeddings, batch).item() == pytest.approx(expected, rel=1e-5)


def test_several_labels_equal_the_loss_of_transformers(make_batch, make_embeddings):
    """`problem_type: multi_label_classification` is trained with BCEWithLogitsLoss there."""
    embeddings, objective = make_embeddings(7), started()
    logits = embeddings.image_features @ objective.weight.T + objective.bias
    expected = torch.nn.BCEWithLogitsLoss()(logits, torch.tensor(TARGETS, dtype=torch.float32))
    torch.testing.assert_close(objective(embeddings, make_batch(7, labels=LABELS, targets=TARGETS)), expected)


def test_gradient_reaches_features_and_head_and_nothing_else(make_batch, make_embeddings):
    embeddings, objective = make_embeddings(7), started()
    objective(embeddings, make_batch(7, labels=LABELS)).backward()
    assert objective.weight.grad.abs().sum() > 0
    assert objective.bias.grad.abs().sum() > 0
    assert embeddings.image_features.grad.abs().sum() > 0
    assert embeddings.text_features.grad is None
    assert embeddings.temperature.grad is None


def test_texts_need_not_be_there(make_batch, make_embeddings):
    embeddings, batch, objective = make_embeddings(7), make_batch(7, labels=LABELS), started()
    without = Embeddings(embeddings.image_features, embeddings.image_features[:0], embeddings.temperature)
    assert objective(without, batch).equal(objective(embeddings, batch))


def test_start_keeps_a_head_that_is_there():
    objective = started()
    before = objective.weight.detach().clone()
    objective.start(torch.ones(3, 8), torch.ones(3))
    assert objective.weight.equal(before)


def test_start_is_kept_while_the_head_is_trained(make_batch, make_embeddings):
    objective = started()
    before, bias = objective.weight.detach().clone(), objective.bias.detach().clone()
    optimizer = torch.optim.SGD(objective.parameters(), lr=1.0)
    objective(make_embeddings(7), make_batch(7, labels=LABELS)).backward()
    optimizer.step()
    assert objective.start_weight.equal(before)
    assert objective.start_bias.equal(bias)
    assert not objective.weight.equal(before)
    assert not objective.bias.equal(bias)


def test_head_is_saved_and_class_weights_are_not():
    assert list(Classification(class_weights=[1.0, 2.0]).state_dict()) == []
    objective = started(class_weights=[1.0, 2.0, 3.0])
    assert list(objective.state_dict()) == ["weight", "bias", "start_weight", "start_bias"]
    other = started()
    other.load_state_dict({name: tensor + 1 for name, tensor in objective.state_dict().items()})
    assert other.bias.equal(objective.bias + 1)


def test_permuted_rows_give_the_same_loss(make_batch, make_embeddings):
    batch = make_batch(7, labels=LABELS, weights=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    embeddings, objective = make_embeddings(7), started()
    order = torch.tensor([3, 0, 4, 2, 1, 6, 5])
    shuffled = embeddings._replace(image_features=embeddings.image_features[order])
    loss = objective(shuffled, Batch(*(field[order] for field in batch)))
    torch.testing.assert_close(loss, objective(embeddings, batch))


@pytest.mark.parametrize("targets", [None, TARGETS])
def test_half_precision_is_computed_in_float32(make_batch, make_embeddings, targets):
    embeddings, batch = make_embeddings(7, dtype=torch.bfloat16), make_batch(7, labels=LABELS, targets=targets)
    exact = embeddings._replace(image_features=embeddings.image_features.float())
    objective = started(class_weights=[0.5, 3.0, 1.0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(embeddings, batch)
    assert loss.equal(objective(exact, batch))


def test_refuses_class_weights_that_do_not_fit():
    with pytest.raises(RecipeError, match=r"one number for each of the 3 classes, but got 2\. List one"):
        started(class_weights=[1.0, 2.0])
    for wrong in ([1.0, 0.0], [1.0, float("nan")], [float("inf")]):
        with pytest.raises(ValueError, match="Expected class_weights to be positive and finite, but got"):
            Classification(wrong)
    with pytest.raises(ValueError, match=r"Expected label_smoothing to be in \[0, 1\), but got 1\.0"):
        Classification(label_smoothing=1.0)
    with pytest.raises(ValueError, match="Expected lr_scale to be positive and finite, but got 0"):
        Classification(lr_scale=0)


def test_refuses_a_loss_before_the_start(make_batch, make_embeddings):
    with pytest.raises(RuntimeError, match=r"Expected the head to be started, but got none. Call start\(\)"):
        Classification()(make_embeddings(2), make_batch(2, labels=[0, 1]))
