import math

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_accuracy

from finetune.metrics.accuracy import ClassAccuracy


def figures_of(scores, labels, batch_size=7):
    metric = ClassAccuracy()
    for part in torch.arange(len(labels)).split(batch_size):
        metric.update(scores[part], labels[part])
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("classes", [3, 6, 20])
def test_equals_scikit_learn_and_torchmetrics(classes, seed):
    random = torch.Generator().manual_seed(seed)
    scores = torch.randn(50, classes, generator=random) * 10
    labels = torch.randint(0, classes - 1, (50,), generator=random)
    figures = figures_of(scores, labels)
    predictions, names = scores.argmax(1).numpy(), np.arange(classes)
    assert figures["accuracy"] == pytest.approx(top_k_accuracy_score(labels, scores, k=1, labels=names))
    if classes > 5:
        assert figures["accuracy_top5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5, labels=names))
    else:
        assert figures["accuracy_top5"] == 1.0
    balanced = balanced_accuracy_score(labels.numpy(), predictions)
    assert figures["mean_per_class_recall"] == pytest.approx(balanced)
    theirs = multiclass_accuracy(scores, labels, classes, average="micro")
    assert figures["accuracy"] == pytest.approx(float(theirs))


@pytest.mark.parametrize("labels", [[0] * 9, [0, 0, 0, 0, 0, 0, 0, 1, 2], [7] * 9])
def test_a_collapsed_model_scores_chance_whatever_the_classes(labels):
    figures = figures_of(torch.full((9, 8), 3.3), torch.tensor(labels))
    del figures["expected_calibration_error"]  # of the class that argmax takes
    assert figures == pytest.approx({"accuracy": 1 / 8, "accuracy_top5": 5 / 8, "mean_per_class_recall": 1 / 8})


def test_torchmetrics_gives_ties_to_the_lowest_class():
    """The reason for counting here; if this fails, MulticlassAccuracy can take over."""
    assert multiclass_accuracy(torch.full((9, 8), 3.3), torch.zeros(9, dtype=torch.int64), 8) == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_ties_are_shared(seed):
    random = np.random.default_rng(seed)
    scores, labels = random.integers(0, 3, (30, 7)).astype(float), random.integers(0, 7, 30)
    shares = []
    for row, label in zip(scores, labels, strict=True):
        winners = np.flatnonzero(row == row.max())
        shares.append(1 / len(winners) if label in winners else 0.0)
    figures = figures_of(torch.tensor(scores), torch.tensor(labels))
    assert figures["accuracy"] == pytest.approx(np.mean(shares))
    recalls = [np.mean(np.array(shares)[labels == label]) for label in set(labels)]
    assert figures["mean_per_class_recall"] == pytest.approx(np.mean(recalls))


def test_a_class_ruled_out_by_minus_infinity_loses():
    scores = torch.tensor([[-torch.inf, -3.0, -2.0], [-torch.inf, -3.0, -2.0]])
    assert figures_of(scores, torch.tensor([0, 2]))["accuracy"] == 0.5


def test_a_single_row():
    assert figures_of(torch.tensor([[0.1, 0.9]]), torch.tensor([1])) == {
        "accuracy": 1.0,
        "accuracy_top5": 1.0,
        "mean_per_class_recall": 1.0,
        "expected_calibration_error": pytest.approx(1 / (1 + math.exp(0.8))),
    }


def test_processes_together_give_the_figures_of_one():
    scores, labels = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 5
    first, second = ClassAccuracy(), ClassAccuracy()
    first.update(scores[:11], labels[:11])
    second.update(scores[11:], labels[11:])
    first.merge_state(second)
    assert {name: float(value) for name, value in first.compute().items()} == pytest.approx(figures_of(scores, labels))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_scores_that_cannot_be_compared(value):
    with pytest.raises(ValueError, match=r"Expected scores to be below infinity, but got NaN or infinity\."):
        ClassAccuracy().update(torch.tensor([[value, 1.0]]), torch.tensor([0]))


@pytest.mark.parametrize("label", [-1, 2])
def test_refuses_a_label_that_is_no_class(label):
    with pytest.raises(ValueError, match=rf"Expected label_ids to be in \[0, 2\), but got {label}\."):
        ClassAccuracy().update(torch.tensor([[0.0, 1.0]]), torch.tensor([label]))
