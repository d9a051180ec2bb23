"""The paired bootstrap against a plain NumPy one, and what it promises."""

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from finetune.metrics.bootstrap import Difference, paired_difference
from finetune.metrics.statistics import MeanAveragePrecision, Median, mean


def values(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    before = (generator.random(count) < 0.5).astype(float)
    return before, np.where(generator.random(count) < 0.2, 1.0, before)


def difference(before, after) -> Difference:
    return paired_difference(*(mean(torch.as_tensor(values)) for values in (before, after)))


def test_interval_is_that_of_a_loop_over_draws():
    before, after = values()
    found = difference(before, after)
    generator = np.random.default_rng(1)
    draws = []
    for _ in range(4000):
        rows = generator.integers(0, len(before), len(before))
        draws.append(after[rows].mean() - before[rows].mean())
    assert found.value == pytest.approx(after.mean() - before.mean())
    assert [found.low, found.high] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.01)
    assert found.verdict == "higher"


def test_interval_is_paired():
    """Two models that fail on the same hard rows are told apart by few rows of difference."""
    before, after = values()
    paired = difference(before, after)
    shuffled = difference(before, np.random.default_rng(2).permutation(after))
    assert paired.high - paired.low < 0.7 * (shuffled.high - shuffled.low)


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(60):
        found = difference(np.zeros(80), generator.normal(0.1, 1.0, 80))
        covered += found.low <= 0.1 <= found.high
    assert 51 <= covered <= 60


def test_verdicts():
    ones, zeros = np.ones(5), np.zeros(5)
    assert difference(ones, zeros)[:] == (-1.0, -1.0, -1.0)
    assert difference(ones, zeros).verdict == "lower"
    assert difference(ones, ones).verdict == "no clear difference"


def test_interval_of_medians_is_scipys():
    generator = np.random.default_rng(4)
    before = generator.integers(1, 40, 101).astype(float)
    after = before - generator.integers(-3, 12, 101)
    found = paired_difference(*(Median(torch.as_tensor(values)) for values in (before, after)))
    expected = bootstrap(
        (before, after),
        lambda x, y, axis: np.median(y, axis=axis) - np.median(x, axis=axis),
        n_resamples=4000,
        method="percentile",
        paired=True,
        vectorized=True,
        rng=5,
    ).confidence_interval
    assert [found.low, found.high] == pytest.approx([*expected], abs=1)  # ranks are whole numbers
    assert found.value == np.median(after) - np.median(before)


def test_draws_are_kept_in_memory_a_part_at_a_time(monkeypatch):
    before, after = values(50)
    monkeypatch.setattr("finetune.metrics.bootstrap.COUNTS", 50 * 300)
    found = difference(before, after)
    expected = bootstrap((after - before,), np.mean, n_resamples=4000, method="percentile", rng=6).confidence_interval
    assert [found.low, found.high] == pytest.approx([*expected], abs=0.02)


def test_draws_without_any_label_are_left_out():
    scores = [torch.tensor([[0.3], [0.2], [0.1]]), torch.tensor([[0.1], [0.2], [0.3]])]
    targets = torch.tensor([[True], [False], [False]])
    found = paired_difference(*(MeanAveragePrecision(each, targets) for each in scores))
    assert found.value == pytest.approx(1 / 3 - 1)
    assert np.isfinite([found.low, found.high]).all()
    assert found.verdict == "no clear difference"  # drawn alone, the labelled row is found first by both


@pytest.mark.parametrize(("before", "after"), [(1, 2), (0, 0)])
def test_figures_must_be_of_the_same_queries(before, after):
    with pytest.raises(ValueError, match=f"to be of the same queries, but got {before} and {after} of them"):
        difference(np.ones(before), np.ones(after))
