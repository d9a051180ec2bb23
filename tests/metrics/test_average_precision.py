import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, label_ranking_average_precision_score

from finetune.metrics.average_precision import AveragePrecision

NAMES = ("cat", "dog", "emu", "fox", "gnu")


def figures_of(scores, targets, batch_size=7):
    metric = AveragePrecision(NAMES[: scores.shape[1]])
    for part in torch.arange(len(scores)).split(batch_size):
        metric.update(scores[part], targets[part])
    return {name: float(value) for name, value in metric.compute().items()}


def expected_of(scores, targets):
    """scikit-learn's figures; classes and images without a label do not count."""
    scores, targets = scores.double().numpy(), targets.numpy()
    occurs, has_label = targets.any(0), targets.any(1)
    by_class = average_precision_score(targets[:, occurs], scores[:, occurs], average=None)
    by_image = label_ranking_average_precision_score(targets[has_label], scores[has_label])
    names = [f"average_precision/{name}" for name, there in zip(NAMES, occurs, strict=False) if there]
    figures = {"mean_average_precision": by_class.mean(), "label_ranking_average_precision": by_image}
    return figures | dict(zip(names, np.atleast_1d(by_class), strict=True))


@pytest.mark.parametrize("scale", [0.1, 1.0, 300.0])
@pytest.mark.parametrize("seed", range(5))
def test_equals_scikit_learn(seed, scale):
    """Also logits so large that their sigmoids are equal, images without labels, and a class without images."""
    random = torch.Generator().manual_seed(seed)
    scores, targets = torch.randn(40, 5, generator=random) * scale, torch.rand(40, 5, generator=random) < 0.3
    targets[:4], targets[:, 3] = False, False
    figures = figures_of(scores, targets)
    assert figures == pytest.approx(expected_of(scores, targets), abs=1e-6)
    assert "average_precision/fox" not in figures


@pytest.mark.parametrize("seed", range(5))
def test_ties_equal_scikit_learn(seed):
    random = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 3, (30, 5), generator=random).float()
    targets = torch.rand(30, 5, generator=random) < 0.4
    assert figures_of(scores, targets) == pytest.approx(expected_of(scores, targets), abs=1e-6)


def test_a_collapsed_model_scores_the_share_of_each_class():
    targets = torch.tensor([[True, False], [True, True], [False, False], [True, False]])
    assert figures_of(torch.full((4, 2), 3.3), targets) == pytest.approx(
        {
            "mean_average_precision": 0.5,
            "label_ranking_average_precision": (1 / 2 + 1 + 1 / 2) / 3,
            "average_precision/cat": 0.75,
            "average_precision/dog": 0.25,
        }
    )


def test_a_single_class():
    scores, targets = torch.tensor([[0.9], [0.1], [0.5]]), torch.tensor([[True], [True], [False]])
    assert figures_of(scores, targets)["mean_average_precision"] == pytest.approx((1 + 2 / 3) / 2)


def test_no_label_at_all_is_nan():
    figures = figures_of(torch.rand(3, 2), torch.zeros(3, 2, dtype=torch.bool))
    assert list(figures) == ["mean_average_precision", "label_ranking_average_precision"]
    assert all(np.isnan(value) for value in figures.values())


def test_processes_together_give_the_figures_of_one():
    random = torch.Generator().manual_seed(0)
    scores, targets = torch.randn(20, 5, generator=random), torch.rand(20, 5, generator=random) < 0.5
    first, second = AveragePrecision(NAMES), AveragePrecision(NAMES)
    first.update(scores[:11], targets[:11])
    second.update(scores[11:], targets[11:])
    first.merge_state(second)
    assert {name: float(value) for name, value in first.compute().items()} == pytest.approx(figures_of(scores, targets))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_scores_that_cannot_be_compared(value):
    with pytest.raises(ValueError, match=r"Expected scores to be finite, but got NaN or infinity\."):
        AveragePrecision(["a", "b"]).update(torch.tensor([[value, 1.0]]), torch.tensor([[True, False]]))


@pytest.mark.parametrize("columns", [(3, 2), (2, 3), (3, 3)])
def test_refuses_shapes_that_do_not_fit(columns):
    scores, targets = torch.zeros(4, columns[0]), torch.zeros(4, columns[1], dtype=torch.bool)
    with pytest.raises(ValueError, match=r"Expected scores and targets to have 2 columns, but got shapes \(4, "):
        AveragePrecision(["a", "b"]).update(scores, targets)
