"""A shuffled order that is computed where it is asked for."""

import tracemalloc
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import chisquare

from finetune.data.loading.permutation import KeyedPermutation
from finetune.data.loading.sampler import TrainBatches


@pytest.mark.parametrize("length", [*range(1, 40), 255, 256, 257, 1000, 65536, 65537])
def test_each_number_comes_once(length):
    found = KeyedPermutation(length, [3, 1])[np.arange(length)]
    assert np.array_equal(np.sort(found), np.arange(length))


@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_all_orders_are_as_frequent_as_chance_has_it(length):
    """Of as many keys; a p-value below 1e-4 would be no chance."""
    draws = 40 * len([*permutations(range(length))])
    found = Counter(tuple(KeyedPermutation(length, [seed, 7])[np.arange(length)].tolist()) for seed in range(draws))
    assert chisquare([found[order] for order in permutations(range(length))]).pvalue > 1e-4


def test_neighbours_and_epochs_have_nothing_to_do_with_each_other():
    positions = np.arange(20_000)
    orders = [KeyedPermutation(20_000, [5, epoch])[positions] for epoch in (0, 1)]
    pairs = [(positions, orders[0]), (orders[0][1:], orders[0][:-1]), (orders[0], orders[1])]
    for left, right in pairs:
        assert abs(np.corrcoef(left, right)[0, 1]) < 4 / np.sqrt(20_000)
    assert 0 < (orders[0] == orders[1]).sum() + (orders[0] == positions).sum() < 15  # 2 are expected


def test_what_stands_somewhere_does_not_depend_on_what_else_is_asked():
    permutation, positions = KeyedPermutation(1_000_003, [0, 0]), np.array([[999_999, 0], [17, 1_000_002]])
    together = permutation[positions]
    assert together.shape == (2, 2)
    assert [permutation[np.array([position])].item() for position in positions.ravel()] == together.ravel().tolist()
    assert together.tolist() == [[673201, 949578], [577471, 316651]]  # on every machine


def test_an_epoch_of_a_billion_rows_starts_anywhere_and_takes_no_memory():
    batches = TrainBatches(10**9, 64, seed=0)
    tracemalloc.start()
    first = next(iter(batches))
    batches.delivered = len(batches) - 1
    (last,) = batches
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
    assert len({row for row, _ in [*first, *last]}) == 128
