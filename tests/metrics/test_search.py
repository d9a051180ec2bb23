import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from finetune.metrics.search import Items, search_both_ways


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def coarse(*shape, seed=0):
    """Integer vectors of few values: many similarities are equal."""
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed)).float()


def whole(features):
    return Items(features, torch.arange(len(features)))


def reference(queries, items, correct):
    """What a query finds, one at a time, in NumPy and float64: ties are what is equal to six digits."""
    queries, items = (normalize(part.double(), dim=-1).numpy() for part in (queries, items))
    for query, own in zip(queries, correct, strict=True):
        scores = (items @ query).round(6)
        best = scores[own].max()
        yield (scores > best).sum(), (scores[own] == best).sum(), (scores[~own] == best).sum(), scores.max(), scores


def pair(images, texts, seed):
    """Correct pairs, several for some; each image and each text has one."""
    random = np.random.default_rng(seed)
    correct = random.random((images, texts)) < 0.1
    correct[np.arange(images), random.integers(0, texts, images)] = True
    correct[random.integers(0, images, texts), np.arange(texts)] = True
    return correct, torch.from_numpy(random.permutation(np.argwhere(correct)))


@pytest.mark.parametrize("make", [draw, coarse])
@pytest.mark.parametrize("tile", [1, 2, 5, 7, 12, 13, 20, 100])
def test_what_either_side_finds_equals_the_reference(make, tile):
    images, texts = make(12, 3, seed=1), make(20, 3, seed=2)
    correct, pairs = pair(12, 20, seed=tile)
    by_image, by_text = search_both_ways(whole(images), whole(texts), pairs, tile)
    for found, expected in (
        (by_image, reference(images, texts, correct)),
        (by_text, reference(texts, images, correct.T)),
    ):
        for query, (better, tied_correct, tied_wrong, highest, scores) in enumerate(expected):
            assert found.placement.better[query] == better
            assert found.placement.tied_correct[query] == tied_correct
            assert found.placement.tied_wrong[query] == tied_wrong
            assert float(found.similarity[query]) == pytest.approx(highest, abs=2e-6)
            assert scores[found.nearest[query]] == pytest.approx(highest, abs=2e-6)


def test_order_and_repetition_of_pairs_change_nothing():
    images, texts = draw(4, 5, seed=1), draw(6, 5, seed=2)
    pairs = torch.tensor([[0, 3], [1, 1], [2, 0], [3, 4], [3, 5], [0, 2]])
    shuffled = pairs[torch.tensor([4, 1, 5, 0, 3, 2, 1, 1])]
    for once, again in zip(
        search_both_ways(whole(images), whole(texts), pairs),
        search_both_ways(whole(images), whole(texts), shuffled),
        strict=True,
    ):
        assert all(one.equal(other) for one, other in zip(once.placement, again.placement, strict=True))


@pytest.mark.parametrize("dimensions", [3, 37, 640])
@pytest.mark.parametrize("gallery_size", [17, 33, 1001])
def test_equal_items_far_apart_tie(gallery_size, dimensions):
    """A matrix product may round equal columns differently, depending on where they stand."""
    gallery, queries = draw(gallery_size, dimensions, seed=1), draw(16, dimensions, seed=2)
    gallery[-1] = gallery[0]
    others = torch.stack([torch.zeros(gallery_size, dtype=torch.int64), torch.arange(gallery_size)], dim=1)
    found = []
    for item, tile in ((0, 7), (gallery_size - 1, 5)):
        own = torch.tensor([[query, item] for query in range(1, 16)])
        by_query, _ = search_both_ways(whole(queries), whole(gallery), torch.cat([own, others]), tile)
        found.append(by_query.placement)
    assert (found[0].tied_wrong[1:] >= 1).all()
    assert found[0].ranks().equal(found[1].ranks())


def test_rows_choose_the_items():
    features, rows = draw(9, 5, seed=1), torch.tensor([7, 0, 3])
    texts, pairs = draw(3, 5, seed=2), torch.tensor([[0, 0], [1, 1], [2, 2]])
    for chosen, copied in zip(
        search_both_ways(Items(features, rows), whole(texts), pairs),
        search_both_ways(whole(features[rows]), whole(texts), pairs),
        strict=True,
    ):
        assert chosen.similarity.equal(copied.similarity)


@pytest.mark.parametrize(
    ("pairs", "lonely"), [([[0, 0], [2, 2], [2, 1]], "image 1"), ([[0, 0], [2, 2], [1, 2]], "text 1")]
)
def test_refuses_who_has_no_partner(pairs, lonely):
    what = lonely.split()[0]
    with pytest.raises(ValueError, match=f"Expected each {what} to have a correct partner, but got none for {lonely}."):
        search_both_ways(whole(torch.eye(3)), whole(torch.eye(3)), torch.tensor(pairs))
