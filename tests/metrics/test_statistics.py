"""Metrics computed again for draws of their units, against scikit-learn and NumPy on the repeated rows themselves."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from finetune.metrics.accuracy import ClassAccuracy
from finetune.metrics.average_precision import AveragePrecision
from finetune.metrics.bootstrap import paired_difference
from finetune.metrics.retrieval import Retrieval
from finetune.metrics.statistics import MeanAveragePrecision, Median, from_tensors, mean, standard_error, to_tensors


def draws(units, count=20):
    """Rows drawn with replacement, and how often each was drawn."""
    rows = np.random.default_rng(0).integers(0, units, (count, units))
    counts = np.stack([np.bincount(row, minlength=units) for row in rows], axis=1)
    return rows, torch.from_numpy(counts).float()


def test_mean_is_that_of_the_drawn_rows():
    values = np.random.default_rng(1).random(31)
    rows, counts = draws(31)
    np.testing.assert_allclose(mean(torch.from_numpy(values))(counts), values[rows].mean(axis=1))


@pytest.mark.parametrize("units", [1, 2, 30, 31])
def test_median_is_that_of_the_drawn_rows(units):
    values = np.random.default_rng(1).integers(1, 9, units) / 2
    rows, counts = draws(units)
    np.testing.assert_allclose(Median(torch.from_numpy(values))(counts), np.median(values[rows], axis=1))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_recall_is_that_of_the_drawn_rows():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(40, 6, generator=generator), torch.randint(0, 5, (40,), generator=generator)
    metric = ClassAccuracy()
    metric.update(scores, labels)
    rows, counts = draws(40)
    found = metric.figures()["mean_per_class_recall"](counts)
    predictions = scores.argmax(dim=1)
    expected = [balanced_accuracy_score(labels[row], predictions[row]) for row in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("decimals", [0, 3], ids=["ties", "no ties"])
def test_average_precision_is_that_of_the_drawn_rows(decimals):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(40, 3, generator=generator).round(decimals=decimals)
    targets = torch.rand(40, 3, generator=generator) < 0.4
    rows, counts = draws(40)
    found = MeanAveragePrecision(scores, targets)(counts)
    expected = [average_precision_score(targets[row].numpy(), scores[row].numpy()) for row in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_class_that_was_not_drawn_does_not_count():
    scores, targets = torch.tensor([[0.9, 0.1], [0.2, 0.3]]), torch.tensor([[True, False], [False, True]])
    counts = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    assert MeanAveragePrecision(scores, targets)(counts).tolist() == [1.0, 1.0]
    assert MeanAveragePrecision(scores, targets & False)(counts).isnan().all()


def test_mean_hit_rate_draws_what_belongs_together():
    """Two captions of the first image come and go with it; a caption of two images brings both."""
    generator = torch.Generator().manual_seed(0)
    image_ids, caption_ids = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 1, 2, 3, 3])
    metric = Retrieval()
    embeds = [torch.randn(5, 4, generator=generator) for _ in range(2)]
    metric.update(embeds[0][image_ids], embeds[1][caption_ids], image_ids, caption_ids)
    figures = metric.figures()
    figure, found = figures["mean_R@K"], metric.search()
    ranks = {way: getattr(found, way).placement.ranks() for way in ("image_to_text", "text_to_image")}
    assert figure.units == 3
    counts = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 2.0]])
    repeats = {
        "image_to_text": [[0, 0, 2, 3], [1, 2, 3, 2, 3]],
        "text_to_image": [[0, 1, 0, 1, 3], [2, 3, 3]],
    }
    expected = [
        np.mean([(ranks[way][drawn[draw]] <= k).float().mean() for way, drawn in repeats.items() for k in (1, 5, 10)])
        for draw in (0, 1)
    ]
    np.testing.assert_allclose(figure(counts), expected, rtol=1e-6)
    assert [figures[f"{way}/median_rank"].units for way in ranks] == [4, 4]


def observed(metric, seed=0):
    """A metric of 30 rows."""
    generator = torch.Generator().manual_seed(seed)
    scores, ids = torch.randn(30, 3, generator=generator), torch.arange(30)
    if isinstance(metric, Retrieval):
        metric.update(scores, torch.randn(30, 3, generator=generator), ids, ids // 2)
    elif isinstance(metric, ClassAccuracy):
        metric.update(scores, ids % 3)
    else:
        metric.update(scores, torch.rand(30, 3, generator=torch.Generator().manual_seed(9)) < 0.5)
    return metric


METRICS = pytest.mark.parametrize(
    "build", [ClassAccuracy, lambda: AveragePrecision("abc"), Retrieval], ids=["accuracy", "precision", "retrieval"]
)


@METRICS
def test_point_estimates_are_the_metrics(build):
    metric = observed(build())
    figures, metrics = metric.figures(), metric.compute()
    without = {name for name in metrics if name.startswith("average_precision/")} | {"expected_calibration_error"}
    assert figures.keys() == metrics.keys() - without
    assert metric.headline in figures
    assert {name: float(figure.point_estimate()) for name, figure in figures.items()} == {
        name: float(metrics[name]) for name in figures
    }


@METRICS
def test_figures_read_back_from_one_file_are_the_same(build, tmp_path):
    """Also those that share tensors with each other, which safetensors refuses to write."""
    before, after = (observed(build(), seed).figures() for seed in (0, 1))
    kinds = {name: to_tensors(figure) for name, figure in after.items()}
    path = tmp_path / "figures.safetensors"
    save_file({f"{name}:{part}": tensor for name, (_, parts) in kinds.items() for part, tensor in parts.items()}, path)
    stored = load_file(path)
    for name, (kind, parts) in kinds.items():
        found = from_tensors(kind, {part: stored[f"{name}:{part}"] for part in parts})
        assert type(found) is type(after[name])
        assert float(found.point_estimate()) == float(after[name].point_estimate())
        assert paired_difference(before[name], found) == paired_difference(before[name], after[name])


def test_stored_tensors_are_copies_in_order():
    scores = torch.rand(3, 4).T
    parts = to_tensors(MeanAveragePrecision(scores, scores > 0.5))[1]
    assert all(tensor.is_contiguous() for tensor in parts.values())
    scores.zero_()
    assert parts["scores"].any()


def test_standard_error_is_that_of_a_share_and_the_largest_that_a_mean_can_have():
    hits = np.repeat([1.0, 0.0], [30, 70])
    assert standard_error(0.3, 100) == pytest.approx(hits.std() / 10)
    values = np.random.default_rng(0).beta(3, 7, 1000)
    assert standard_error(values.mean(), 1000) > values.std() / 1000**0.5
    assert [standard_error(share, 10) for share in (-0.1, 0.0, 1.0, 1.1)] == [0, 0, 0, 0]


def test_unknown_figures_are_refused():
    with pytest.raises(ValueError, match=r"name to be a kind of figure, but got 'Medien'\. Did you mean 'Median'\?"):
        from_tensors("Medien", {"values": torch.ones(2)})
    with pytest.raises(ValueError, match=r"Expected the tensors of Median to be values, but got scores\."):
        from_tensors("Median", {"scores": torch.ones(2)})
    with pytest.raises(ValueError, match=r"Expected the tensors of Median to be values, but got none\."):
        from_tensors("Median", {})
