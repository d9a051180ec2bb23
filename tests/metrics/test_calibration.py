"""Calibration against NumPy, torchmetrics and a search by hand."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from finetune.metrics.accuracy import ClassAccuracy
from finetune.metrics.calibration import calibration_error, chance_calibration_error, fit_temperature, reliability


def softmax(scores):
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def draw(rows, classes, sharpness, seed=0):
    """Logits, and labels drawn from their softmax at another sharpness."""
    random = np.random.default_rng(seed)
    scores = torch.from_numpy(random.normal(size=(rows, classes)) * 4)
    return scores, draw_labels(scores, sharpness, random)


def draw_labels(scores, sharpness, random):
    cumulative = softmax(scores.numpy() * sharpness).cumsum(axis=1)
    labels = (random.random((len(scores), 1)) > cumulative).sum(axis=1).clip(max=scores.shape[1] - 1)
    return torch.from_numpy(labels)


def error_by_hand(scores, labels):
    probabilities = softmax(scores.numpy())
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels.numpy()
    error = 0.0
    for low in range(15):
        inside = (confidence >= low / 15) & (confidence < (low + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return error


@pytest.mark.parametrize(("classes", "seed"), [(2, 0), (5, 1), (40, 2)])
def test_error_is_that_of_numpy_and_torchmetrics(classes, seed):
    scores, labels = draw(300, classes, 0.4, seed)
    metric = ClassAccuracy()
    for part in torch.arange(300).split(70):
        metric.update(scores[part], labels[part])
    found = float(metric.compute()["expected_calibration_error"])
    assert found == pytest.approx(error_by_hand(scores, labels), abs=1e-5)
    theirs = multiclass_calibration_error(scores.softmax(dim=1).float(), labels, classes, n_bins=15, norm="l1")
    assert found == pytest.approx(float(theirs), abs=1e-6)


def test_logits_within_the_unit_interval_are_not_taken_for_probabilities():
    scores, labels = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0])
    metric = ClassAccuracy()
    metric.update(scores, labels)
    assert float(metric.compute()["expected_calibration_error"]) == pytest.approx(error_by_hand(scores, labels))


@pytest.mark.parametrize("sharpness", [0.3, 1.0])
def test_bins_are_what_the_error_is_made_of(sharpness):
    scores, labels = draw(500, 6, sharpness)
    bins = reliability(scores, labels)
    assert len(bins) == 15
    assert sum(part.share for part in bins) == pytest.approx(1)
    assert [part.confidence is None for part in bins] == [part.share == 0 for part in bins]
    filled = [part for part in bins if part.share]
    error = sum(part.share * abs(part.accuracy - part.confidence) for part in filled)
    assert error == pytest.approx(error_by_hand(scores, labels), abs=1e-5)
    best = scores.softmax(dim=1).max(dim=1)
    assert error == pytest.approx(float(calibration_error(best.values, best.indices == labels)), abs=1e-5)
    for part in filled:
        assert bins.index(part) / 15 <= part.confidence <= (bins.index(part) + 1) / 15


def test_a_confidence_of_one_is_in_the_last_bin():
    bins = reliability(torch.tensor([[200.0, 0.0], [200.0, 0.0]]), torch.tensor([0, 1]))
    assert bins[-1] == (1.0, 0.5, 1.0)
    assert all(part == (None, None, 0.0) for part in bins[:-1])


def test_the_error_counts_a_confidence_of_one_in_the_last_bin_too():
    confidences = torch.tensor([1.0] * 50 + [0.95] * 50)
    correct = torch.arange(100) % 10 > 0
    correct[50:] = True
    assert float(calibration_error(confidences, correct)) == pytest.approx(abs(0.95 - 0.975), abs=1e-6)


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 3.0])
def test_fit_finds_the_temperature_that_labels_were_drawn_at(sharpness):
    scores, labels = draw(20_000, 8, sharpness)
    factor = fit_temperature(scores, labels)
    assert factor == pytest.approx(1 / sharpness, rel=0.05)
    assert error_by_hand(scores / factor, labels) < 0.02


@pytest.mark.parametrize(("rows", "seed"), [(9, 0), (60, 1), (60, 2)])
@pytest.mark.parametrize("trusted", [0, 20])
def test_the_mean_confidence_is_the_accuracy_as_it_is_estimated(rows, seed, trusted):
    scores, labels = draw(rows, 5, 0.5, seed)
    right = (scores.numpy().argmax(axis=1) == labels.numpy()).sum()
    confidence = softmax(scores.numpy()).max(axis=1).mean()
    confidences = softmax(scores.numpy() / fit_temperature(scores, labels, trusted)).max(axis=1)
    assert confidences.mean() == pytest.approx((right + 1 + trusted * confidence) / (rows + 2 + trusted), abs=1e-6)


def test_trusted_rows_keep_few_rows_near_the_trained_temperature_and_change_little_of_many():
    few, many = draw(3, 8, 0.5), draw(20_000, 8, 0.5)
    near, far = (abs(math.log(fit_temperature(*few, trusted))) for trusted in (20, 0))
    assert near < 0.5 * far
    assert fit_temperature(*many, trusted_rows=20) == pytest.approx(2, rel=0.05)


def test_rows_that_are_all_right_never_ask_for_certainty():
    errors = []
    for rows in (10, 100, 1000):
        labels = torch.arange(rows) % 4
        scores = torch.eye(4)[labels] * 3
        probabilities = (scores / fit_temperature(scores, labels)).softmax(dim=1)
        errors.append(1 - float(probabilities.amax(dim=1).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.1
    assert errors[-1] > 1e-6


def test_one_row_that_is_wrong_does_not_rule_a_few_others():
    labels = torch.arange(10) % 2
    scores = torch.eye(2)[labels] * 6
    scores[0] = -scores[0]
    assert 1 < fit_temperature(scores, labels) < 4


def test_factor_stays_within_its_bounds():
    labels = torch.arange(200) % 2
    assert fit_temperature(torch.eye(2)[1 - labels], labels) == 100
    assert fit_temperature(torch.eye(2)[labels] * 1e-4, labels) == 0.01


@pytest.mark.parametrize("trusted", [0, 20])
def test_a_model_that_knows_nothing_keeps_its_temperature(trusted):
    assert fit_temperature(torch.full((6, 3), 0.7), torch.arange(6) % 3, trusted) == 1


@pytest.mark.parametrize(("rows", "classes"), [(40, 3), (400, 20)])
def test_error_by_chance_is_that_of_labels_drawn_from_the_probabilities(rows, classes):
    scores, _ = draw(rows, classes, 1.0)
    errors = [error_by_hand(scores, draw_labels(scores, 1.0, np.random.default_rng(seed))) for seed in range(300)]
    confidences = scores.softmax(dim=1).amax(dim=1)
    assert chance_calibration_error(confidences) == pytest.approx(np.mean(errors), rel=0.06)
    assert chance_calibration_error(confidences) == chance_calibration_error(confidences)
