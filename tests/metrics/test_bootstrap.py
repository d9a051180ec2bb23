"""The paired bootstrap against a plain NumPy one, and what it promises."""

import numpy as np
import pytest

from finetune.metrics import paired_difference


def values(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    before = (generator.random(count) < 0.5).astype(float)
    return before, np.where(generator.random(count) < 0.2, 1.0, before)


def test_interval_is_that_of_a_loop_over_draws():
    before, after = values()
    found = paired_difference(before, after)
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
    paired = paired_difference(before, after)
    shuffled = paired_difference(before, np.random.default_rng(2).permutation(after))
    assert paired.high - paired.low < 0.7 * (shuffled.high - shuffled.low)


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(60):
        found = paired_difference(np.zeros(80), generator.normal(0.1, 1.0, 80))
        covered += found.low <= 0.1 <= found.high
    assert 51 <= covered <= 60


def test_verdicts():
    ones, zeros = np.ones(5), np.zeros(5)
    assert paired_difference(ones, zeros)[:] == (-1.0, -1.0, -1.0)
    assert paired_difference(ones, zeros).verdict == "lower"
    assert paired_difference(ones, ones).verdict == "no clear difference"


@pytest.mark.parametrize(("before", "after"), [([1.0], [1.0, 2.0]), ([], []), ([[1.0]], [[1.0]])])
def test_values_must_be_those_of_the_same_queries(before, after):
    with pytest.raises(ValueError, match="a value for each of the same queries"):
        paired_difference(before, after)
