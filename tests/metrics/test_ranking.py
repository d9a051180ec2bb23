from itertools import permutations

import numpy as np
import pytest
import torch

from finetune.metrics.ranking import Placement, place


@pytest.mark.parametrize("better", [0, 1, 3])
@pytest.mark.parametrize("tied_correct", [1, 2, 3])
@pytest.mark.parametrize("tied_wrong", [0, 1, 3])
def test_figures_are_the_means_over_all_orders_of_the_tied(better, tied_correct, tied_wrong):
    tied = [True] * tied_correct + [False] * tied_wrong
    ranks = np.array([1 + better + order.index(True) for order in permutations(tied)])
    placement = Placement(torch.tensor([better]), torch.tensor([tied_correct]), torch.tensor([tied_wrong]))
    assert placement.ranks().item() == pytest.approx(ranks.mean())
    for k in range(1, 9):
        assert placement.hits(k).item() == pytest.approx((ranks <= k).mean(), abs=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_counts_equal_a_loop(seed):
    random = np.random.default_rng(seed)
    scores = random.integers(0, 5, (6, 9)) / 4
    correct = random.random((6, 9)) < 0.3
    correct[np.arange(6), random.integers(0, 9, 6)] = True
    queries, items = np.nonzero(correct)
    order = random.permutation(len(queries))
    found = place(
        torch.tensor(scores), torch.tensor(queries[order]), torch.tensor(items[order]), torch.full((6,), 1e-6)
    )
    for query in range(6):
        best = scores[query, correct[query]].max()
        assert found.better[query] == (scores[query] > best).sum()
        assert found.tied_correct[query] == (scores[query, correct[query]] == best).sum()
        assert found.tied_wrong[query] == (scores[query, ~correct[query]] == best).sum()
