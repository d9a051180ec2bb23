import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from finetune.metrics.retrieval import Retrieval

KEYS = {
    *(f"{direction}/R@{k}" for direction in ("image_to_text", "text_to_image") for k in (1, 5, 10)),
    *(f"{direction}/median_rank" for direction in ("image_to_text", "text_to_image")),
    "mean_R@K",
}


def unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def coarse(*shape, seed=0, low=-1, high=2):
    """Integer vectors of few values: many similarities are equal, and exact."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).float()


def reference(scores, correct):
    """Rank and hit rates of one query, in plain Python: the tied stand in random order."""
    best = scores[correct].max()
    better = int((scores > best).sum())
    tied_correct = int((scores[correct] == best).sum())
    tied = int((scores == best).sum())
    rank = 1 + better + (tied - tied_correct) / (tied_correct + 1)
    hits = [
        1 - math.comb(tied - tied_correct, min(k - better, tied)) / math.comb(tied, min(k - better, tied))
        if k > better
        else 0.0
        for k in (1, 5, 10)
    ]
    return rank, hits


def reference_figures(image_embeds, text_embeds, image_ids, caption_ids):
    """The definition as loops over distinct images and captions, with similarities that tie when they should."""
    images, captions = sorted(set(image_ids)), sorted(set(caption_ids))
    rows = set(zip(image_ids, caption_ids, strict=True))
    correct = np.array([[(image, caption) in rows for caption in captions] for image in images])
    similarities = np.array(
        [
            [np.dot(image_embeds[image_ids.index(i)], text_embeds[caption_ids.index(c)]).round(6) for c in captions]
            for i in images
        ]
    )
    figures = {}
    for name, scores, mask in (
        ("image_to_text", similarities, correct),
        ("text_to_image", similarities.T, correct.T),
    ):
        ranks, hits = zip(*(reference(row, own) for row, own in zip(scores, mask, strict=True)), strict=True)
        figures |= {f"{name}/R@{k}": rate for k, rate in zip((1, 5, 10), np.mean(hits, axis=0), strict=True)}
        figures[f"{name}/median_rank"] = np.median(ranks)
    return figures | {"mean_R@K": np.mean([value for key, value in figures.items() if "R@" in key])}


@pytest.mark.parametrize("seed", range(25))
def test_figures_equal_the_reference(seed):
    """Several captions for an image, equal captions of several images, repeated rows, ties or none."""
    random = np.random.default_rng(seed)
    size = int(random.integers(1, 40))
    image_ids = random.integers(0, 15, size).tolist()
    caption_ids = random.integers(100, 120, size).tolist()
    if seed % 2:
        pool = normalize(coarse(120, 3, seed=seed, low=0, high=3), dim=-1).double()
    else:
        pool = unit(120, 8, seed=seed).double()
    images, texts = pool[torch.tensor(image_ids)], pool[torch.tensor(caption_ids)]
    metric = Retrieval(tile=int(random.integers(1, 9)))
    for part in torch.arange(size).split(7):
        metric.update(images[part], texts[part], torch.tensor(image_ids)[part], torch.tensor(caption_ids)[part])
    unit_images = [tuple(row) for row in normalize(images, dim=-1).numpy()]
    unit_texts = [tuple(row) for row in normalize(texts, dim=-1).numpy()]
    rounded = reference_figures(unit_images, unit_texts, image_ids, caption_ids)
    figures = metric.compute()
    assert set(figures) == KEYS
    for key, value in figures.items():
        assert value.ndim == 0
        assert float(value) == pytest.approx(rounded[key], abs=1e-5), key


@pytest.mark.parametrize("gallery_size", [15, 64, 257])
def test_a_collapsed_model_scores_chance(gallery_size):
    metric = Retrieval(tile=10)
    same, ids = torch.full((gallery_size, 640), 0.3), torch.arange(gallery_size)
    metric.update(same, same, ids, ids)
    figures = metric.compute()
    for direction in ("image_to_text", "text_to_image"):
        for k in (1, 5, 10):
            assert float(figures[f"{direction}/R@{k}"]) == pytest.approx(k / gallery_size, abs=1e-5)
        assert float(figures[f"{direction}/median_rank"]) == pytest.approx((gallery_size + 1) / 2)


def test_a_perfect_model_scores_one():
    metric, ids = Retrieval(), torch.arange(30)
    metric.update(torch.eye(30), torch.eye(30), ids, ids)
    figures = metric.compute()
    assert all(float(value) == 1.0 for value in figures.values())


def test_a_single_row():
    metric = Retrieval()
    metric.update(torch.ones(1, 4), -torch.ones(1, 4), torch.tensor([9]), torch.tensor([5]))
    assert {float(value) for value in metric.compute().values()} == {1.0}


def test_hit_rate_is_not_recall():
    """One of an image's two captions comes first: R@1 is 1, where true recall is a half."""
    metric = Retrieval()
    metric.update(
        torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
        torch.tensor([[1.0, 0.1], [0.0, -1.0], [0.1, 1.0]]),
        torch.tensor([0, 0, 1]),
        torch.tensor([0, 1, 2]),
    )
    assert float(metric.compute()["image_to_text/R@1"]) == 1.0


def test_rows_repeated_by_a_sampler_change_nothing():
    once, twice = Retrieval(), Retrieval()
    images, texts, ids = unit(20, 6, seed=1), unit(20, 6, seed=2), torch.arange(20)
    once.update(images, texts, ids, ids)
    twice.update(images, texts, ids, ids)
    twice.update(images[:3], texts[:3], ids[:3], ids[:3])
    assert once.compute() == twice.compute()


def test_processes_together_give_the_figures_of_one():
    ids = torch.arange(20) // 2
    images, texts = unit(20, 6, seed=1)[ids], unit(20, 6, seed=2)
    whole, first, second = Retrieval(), Retrieval(), Retrieval()
    whole.update(images, texts, ids, torch.arange(20))
    first.update(images[::2], texts[::2], ids[::2], torch.arange(20)[::2])
    second.update(images[1::2], texts[1::2], ids[1::2], torch.arange(20)[1::2])
    first.merge_state(second)
    assert first.compute() == whole.compute()


def test_half_precision_and_autocast_are_compared_in_float32():
    images, texts, ids = unit(50, 64, seed=1).bfloat16(), unit(50, 64, seed=2).bfloat16(), torch.arange(50)
    half, full = Retrieval(), Retrieval()
    full.update(images.float(), texts.float(), ids, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half.update(images, texts, ids, ids)
        figures = half.compute()
    assert figures == full.compute()


def test_refuses_embeddings_that_are_not_finite():
    metric, ids = Retrieval(), torch.arange(3)
    broken = torch.eye(3)
    broken[1, 0] = float("nan")
    metric.update(torch.eye(3), broken, ids, ids)
    with pytest.raises(ValueError, match=r"Expected text features to be finite, but 1 of 3 rows are not\."):
        metric.compute()


def test_rows_are_searched_once_until_there_are_more():
    metric, ids = Retrieval(), torch.arange(4)
    metric.update(torch.eye(4), torch.eye(4), ids, ids)
    first = metric.search()
    metric.compute()
    assert metric.search() is first
    metric.update(torch.eye(4), torch.eye(4).flip(0), ids + 4, ids + 4)
    assert len(metric.search().rows) == 8
    metric.reset()
    metric.update(torch.eye(4), torch.eye(4).flip(0), ids, ids)
    assert float(metric.compute()["image_to_text/R@1"]) == 0


def test_a_batch_on_the_way_leaves_the_figures_of_all():
    """Calling the metric computes the batch's own figures in between."""
    images, texts, ids = unit(20, 6, seed=1), unit(20, 6, seed=2), torch.arange(20)
    whole, parts = Retrieval(), Retrieval()
    whole.update(images, texts, ids, ids)
    for part in ids.split(5):
        parts(images[part], texts[part], part, part)
    assert parts.compute() == whole.compute()
