"""Spread and effective rank against NumPy's pairs and singular values."""

import numpy as np
import pytest
import torch

from finetune.metrics.geometry import Cloud, effective_rank, spread


def cone(rows: int = 40, width: int = 12, seed: int = 0) -> torch.Tensor:
    """Unit vectors around a common direction, of ever smaller variance along the axes."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(rows, width, generator=generator) * torch.linspace(1, 0.01, width) + 0.4
    return torch.nn.functional.normalize(vectors, dim=-1)


def numpy_rank(matrix: np.ndarray) -> float:
    values = np.linalg.svd(matrix, compute_uv=False)
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def test_spread_is_the_mean_over_all_pairs():
    embeds = cone().double()
    cosines = (embeds @ embeds.T).numpy()
    expected = 1 - cosines[~np.eye(len(cosines), dtype=bool)].mean()
    assert spread(embeds.sum(0), len(embeds)) == pytest.approx(expected)


def test_effective_rank_is_that_of_the_singular_values():
    embeds = cone().double()
    assert effective_rank(embeds.T @ embeds) == pytest.approx(numpy_rank(embeds.numpy()))


def test_effective_rank_by_hand():
    two = torch.diag(torch.tensor([9.0, 1.0, 0.0]))  # singular values 3 and 1
    assert effective_rank(two) == pytest.approx(4 / 3**0.75)


def test_batches_add_up_and_equal_ids_count_once():
    embeds = cone()
    ids = torch.arange(40)
    cloud = Cloud()
    for part in (slice(0, 7), slice(5, 30), slice(20, 40)):
        cloud.update(3 * embeds[part], ids[part])
    assert cloud.count == 40
    assert cloud.spread == pytest.approx(spread(embeds.sum(0), 40), abs=1e-6)
    assert cloud.effective_rank == pytest.approx(numpy_rank(embeds.numpy()), rel=1e-5)
    twice = Cloud()
    twice.update(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([4, 2, 2]))
    assert (twice.count, twice.spread) == (2, 1)


def test_equal_embeddings_have_rank_one_and_no_spread():
    cloud = Cloud()
    cloud.update(torch.tensor([1.0, 2.0, -3.0]).repeat(50, 1), torch.arange(50))
    assert cloud.spread == pytest.approx(0, abs=1e-12)
    assert cloud.effective_rank == pytest.approx(1, abs=1e-5)


def test_features_without_a_direction_are_counted_apart():
    features = torch.cat([cone(3), torch.zeros(1, 12), torch.full((1, 12), torch.nan), torch.full((2, 12), 3e38)])
    cloud = Cloud()
    cloud.update(features, torch.arange(7))
    assert (cloud.count, cloud.broken) == (3, 4)
    assert cloud.spread == pytest.approx(spread(cone(3).sum(0), 3), abs=1e-6)
