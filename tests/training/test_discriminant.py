import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from finetune.training.discriminant import discriminant, one_against_rest

ROWS, WIDTH, SHRINKAGE = 60, 5, 7.0


def clouds(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes of unequal size, each a correlated cloud of its own place, away from the origin."""
    random = np.random.default_rng(seed)
    label_ids = random.choice(3, ROWS, p=[0.5, 0.3, 0.2])
    places = random.normal(scale=2.0, size=(3, WIDTH)) + 10
    values = places[label_ids] + random.normal(size=(ROWS, WIDTH)) @ random.normal(size=(WIDTH, WIDTH))
    return torch.from_numpy(values), torch.from_numpy(label_ids)


def gaussian_posteriors(features, label_ids, counted):
    """Log of share times density of each class, with the covariance written down row by row."""
    mean = np.average(features, axis=0, weights=counted)
    variance = np.average((features - mean) ** 2, axis=0, weights=counted).mean()
    means = [np.average(features[label_ids == c], axis=0, weights=counted[label_ids == c]) for c in range(3)]
    scatter = SHRINKAGE * variance * np.eye(WIDTH)
    for row, label, count in zip(features, label_ids, counted, strict=True):
        scatter += count * np.outer(row - means[label], row - means[label])
    covariance = scatter / (counted.sum() - 3 + SHRINKAGE)
    shares = [np.log(counted[label_ids == c].sum()) for c in range(3)]
    densities = [multivariate_normal(means[c], covariance).logpdf(features) for c in range(3)]
    return np.stack([density + share for density, share in zip(densities, shares, strict=True)], axis=1)


@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_posteriors_of_gaussians(weighted):
    features, label_ids = clouds()
    counted = np.random.default_rng(1).uniform(0.5, 2.0, ROWS) if weighted else np.ones(ROWS)
    weight, bias = discriminant(features, label_ids, torch.from_numpy(counted), 3, SHRINKAGE)
    logits = (features @ weight.T + bias).numpy()
    expected = gaussian_posteriors(features.numpy(), label_ids.numpy(), counted)
    np.testing.assert_allclose(logits - logits[:, :1], expected - expected[:, :1], rtol=1e-9, atol=1e-9)


def test_a_weight_is_a_number_of_rows():
    features, label_ids = clouds()
    twice = discriminant(
        torch.cat([features, features[:9]]), torch.cat([label_ids, label_ids[:9]]), torch.ones(69), 3, 1.0
    )
    weights = torch.ones(60)
    weights[:9] = 2
    for found, expected in zip(discriminant(features, label_ids, weights, 3, 1.0), twice, strict=True):
        torch.testing.assert_close(found, expected)


def test_one_row_a_class_gives_the_nearest_row():
    features = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    weight, bias = discriminant(features, torch.arange(4), torch.ones(4), 4, SHRINKAGE)
    others = torch.randn(200, 9, generator=torch.Generator().manual_seed(1)).double()
    nearest = torch.cdist(others, features.double()).argmin(dim=1)
    assert (others @ weight.T + bias).argmax(dim=1).equal(nearest)


def test_a_class_without_rows_is_never_sure():
    features, label_ids = clouds()
    weight, bias = discriminant(features, label_ids, torch.ones(ROWS), 4, SHRINKAGE)
    assert weight.isfinite().all()
    assert bias.isfinite().all()
    logits = features @ weight.T + bias
    assert (logits.argmax(dim=1) == label_ids).double().mean() > 0.9
    at_centre = features.mean(0) @ weight.T + bias
    assert at_centre[3] == pytest.approx(np.log(0.5))


def test_one_against_rest_equals_scikit_learn_without_shrinkage():
    features, label_ids = clouds()
    targets = torch.stack([label_ids == 0, label_ids != 1], dim=1)
    weight, bias = one_against_rest(features, targets, torch.ones(ROWS), 1e-9)
    for column in range(2):
        reference = LinearDiscriminantAnalysis(solver="lsqr").fit(features, targets[:, column])
        expected = reference.decision_function(features)
        np.testing.assert_allclose(features @ weight[column] + bias[column], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [False, True])
def test_a_question_with_one_answer_has_no_direction(value):
    features, _ = clouds()
    weight, bias = one_against_rest(features, torch.full((ROWS, 1), value), torch.ones(ROWS), SHRINKAGE)
    assert (features @ weight.T + bias).std() < 1e-6
    assert (bias[0] > 0) == value
