"""The exact search against NumPy in float64."""

import numpy as np
import pytest

from finetune.inference import nearest
from finetune.inference.nearest import find_nearest


def expected(vectors: np.ndarray, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and cosines of the best by a full sort, equal ones by row."""
    vectors, queries = (x.astype(np.float64) for x in (vectors, queries))
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)
    cosines = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ unit.T
    rows = np.argsort(-cosines.round(12), axis=1, kind="stable")[:, :top]
    return rows, np.take_along_axis(cosines, rows, 1)


def cut(vectors: np.ndarray, *lengths: int):
    return lambda: iter(np.split(vectors, np.cumsum(lengths)))


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    monkeypatch.setattr(nearest, "BLOCK", 1024)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("count", "top"), [(9000, 10), (50, 80), (1, 3)])
def test_the_best_are_those_of_a_full_sort(monkeypatch, dtype, count, top):
    monkeypatch.setattr(nearest, "QUERIES", 4)
    random = np.random.default_rng(0)
    vectors, queries = random.normal(size=(count, 16)).astype(dtype), random.normal(size=(7, 16))
    found = find_nearest(cut(vectors, 3, 0, 5000), queries, top)
    rows, cosines = expected(vectors, queries, top)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.similarity, cosines, atol=1e-12)
    assert not found.goes_on.any()


def test_equal_vectors_share_a_rank_in_the_order_of_their_rows():
    random = np.random.default_rng(1)
    vectors = random.normal(size=(20_000, 64)).astype(np.float32)
    vectors[17::1000] = vectors[17]  # twenty copies, far from each other
    found = find_nearest(cut(vectors, 7001), vectors[[17]] * 3, 25, normalised=False)
    assert found.rows[0, :20].tolist() == [*range(17, 20_000, 1000)]
    assert found.ranks[0].tolist() == [1] * 20 + [21, 22, 23, 24, 25]
    assert not found.goes_on[0]
    few = find_nearest(cut(vectors, 7001), vectors[[17]], 6)
    assert few.rows[0].tolist() == [17, 1017, 2017, 3017, 4017, 5017]
    assert few.goes_on[0]


def test_collapsed_vectors_are_all_alike():
    vectors = np.ones((10_000, 8), np.float32)
    found = find_nearest(cut(vectors), np.eye(8)[:2], 4)
    assert found.rows.tolist() == [[0, 1, 2, 3]] * 2
    assert found.ranks.tolist() == [[1] * 4] * 2
    assert found.goes_on.all()


def test_rows_that_are_not_kept_are_not_found():
    random = np.random.default_rng(2)
    vectors, queries = random.normal(size=(9000, 8)).astype(np.float32), random.normal(size=(3, 8))
    kept = random.random(9000) < 0.01
    found = find_nearest(cut(vectors, 100, 4000), queries, 5, kept)
    rows, _ = expected(vectors[kept], queries, 5)
    np.testing.assert_array_equal(found.rows, np.flatnonzero(kept)[rows])


def test_vectors_of_length_one_need_no_lengths():
    random = np.random.default_rng(3)
    vectors, queries = random.normal(size=(5000, 32)), random.normal(size=(2, 32))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    found = [find_nearest(cut(vectors), queries, 9, normalised=unit) for unit in (True, False)]
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
