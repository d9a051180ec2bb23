"""How badly rows fit, against NumPy written from the definitions, and what a planted swap does."""

import numpy as np
import pytest
import torch

from finetune.pipeline.suspect_scores import (
    Similarities,
    compare_rows,
    match_probabilities,
    score_captions,
    score_labels,
)


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def rows(count: int = 30, noise: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings of images and texts of the same things in 16 dimensions."""
    generator = np.random.default_rng(seed)
    things = generator.normal(size=(count, 16))
    return tuple(unit(things + noise * generator.normal(size=things.shape)) for _ in range(2))


def similarities(images: np.ndarray, texts: np.ndarray) -> Similarities:
    return Similarities(*(torch.from_numpy(a @ b.T).float() for a, b in ((images, texts), (images,) * 2, (texts,) * 2)))


def each(count: int) -> torch.Tensor:
    return torch.arange(count)


def around(near: np.ndarray, alike: np.ndarray) -> np.ndarray:
    """For i and j the mean of alike[k, j] over the rows k near i, of which neither is i or j."""
    weights = np.exp(3 * (near - near.mean()) / near.std(ddof=1)) * (1 - np.eye(len(near)))
    weights /= weights.sum(axis=1, keepdims=True)
    found = np.zeros_like(near)
    for i, j in np.ndindex(*near.shape):
        others = np.arange(len(near)) != j
        found[i, j] = weights[i, others] @ alike[others, j] / max(weights[i, others].sum(), 0.05)
    return found


def test_match_probabilities_are_those_of_numpy():
    images, texts = rows()
    near_images = around(images @ images.T, texts @ texts.T)
    near_texts = around(texts @ texts.T, images @ images.T).T
    parts = [(part - part.mean()) / part.std(ddof=1) for part in (images @ texts.T, near_images, near_texts)]
    expected = np.exp(3 * (parts[0] + 0.5 * parts[1] + 0.5 * parts[2]))
    for _ in range(50):
        expected /= expected.sum(axis=1, keepdims=True)
        expected /= expected.sum(axis=0, keepdims=True)
    found = match_probabilities(similarities(images, texts))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(dim=0), np.ones(30))
    np.testing.assert_allclose(found.sum(dim=1), np.ones(30), atol=0.02)


def test_swapped_texts_are_the_worst_and_find_each_other():
    images, texts = rows(noise=0.1)
    texts[[5, 20]] = texts[[20, 5]]
    found = score_captions(similarities(images, texts), each(30), each(30))
    assert set(found.scores.topk(2).indices.tolist()) == {5, 20}
    assert (found.better[5], found.better[20]) == (20, 5)
    assert (found.better == -1).sum() == 28


def test_a_row_without_rivals_is_less_suspect_than_swapped_ones_that_are_more_alike():
    images, texts = rows(noise=0.2)
    stranger = unit(images[7] - (images[7] @ texts[7]) * texts[7] - texts[7])  # the cosine with its text is negative
    images[7] = stranger
    texts[[5, 20]] = unit(0.6 * texts[[20, 5]] + 0.4 * texts[[5, 20]])  # fits its image better than row 7's does
    pairs = similarities(images, texts)
    assert pairs.pairs[7, 7] < min(pairs.pairs[5, 5], pairs.pairs[20, 20])
    found = score_captions(pairs, each(30), each(30))
    assert found.scores[7] < min(found.scores[5], found.scores[20])


def test_an_image_and_a_text_of_several_rows_are_matched_in_any_of_them():
    generator = np.random.default_rng(0)
    image_ids, text_ids = generator.integers(0, 6, 15), generator.integers(0, 8, 15)
    images, texts = rows(15)
    images, texts = images[image_ids], texts[text_ids]
    likely = match_probabilities(similarities(images, texts)).numpy()
    found = score_captions(similarities(images, texts), torch.from_numpy(image_ids), torch.from_numpy(text_ids))
    for row in range(15):
        of_image = likely[image_ids == image_ids[row]].sum(axis=0)
        own = of_image[text_ids == text_ids[row]].sum()
        others = {
            text: of_image[text_ids == text].sum()
            for text in set(text_ids) - set(text_ids[image_ids == image_ids[row]])
        }
        best = max(others, key=lambda text: others[text])
        assert found.scores[row].item() == pytest.approx(-np.log(own))
        better = found.better[row].item()
        assert text_ids[better] == best if others[best] > own else better == -1


def test_a_wrong_text_beside_right_ones_of_the_same_image_is_found():
    images, texts = rows(10, noise=0.3)
    generator = np.random.default_rng(1)
    images = images.repeat(3, axis=0)
    texts = unit(texts.repeat(3, axis=0) + 0.1 * generator.normal(size=images.shape))  # three texts of each image
    image_ids = each(10).repeat_interleave(3)
    texts[[4, 7]] = texts[[7, 4]]  # of images 1 and 2
    texts[[15, 16]] = texts[[16, 15]]  # both of image 5, and right
    found = score_captions(similarities(images, texts), image_ids, each(30))
    assert set(found.scores.topk(2).indices.tolist()) == {4, 7}
    assert image_ids[found.better[[4, 7]]].tolist() == [2, 1]


def test_equal_similarities_say_nothing():
    found = score_captions(Similarities(*torch.full((3, 5, 5), 0.5)), each(5), each(5))
    assert found.scores.numpy() == pytest.approx(np.log(5))
    assert (found.better == -1).all()


def test_rows_are_seen_by_the_model_that_does_not_know_them():
    models = [tuple(torch.from_numpy(part).float() for part in rows(4, seed=seed)) for seed in (1, 2)]
    folds = [0, 1, 1, 0]
    found = compare_rows(models, torch.tensor(folds))
    for i, a in enumerate(folds):
        for j, b in enumerate(folds):
            pair = (models[a][0][i] @ models[a][1][j] + models[b][0][i] @ models[b][1][j]) / 2
            assert found.pairs[i, j].item() == pytest.approx(pair.item(), abs=1e-6)
            assert found.images[i, j].item() == pytest.approx((models[a][0][i] @ models[a][0][j]).item(), abs=1e-6)
            assert found.texts[i, j].item() == pytest.approx((models[a][1][i] @ models[a][1][j]).item(), abs=1e-6)


def test_labels_are_scored_by_class_thresholds():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 40)
    scores = generator.normal(size=(40, 4)) + 2 * np.eye(4)[labels]
    scores[:, 3] += 9  # a class that no row has
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    thresholds = [shares[labels == c, c].mean() for c in range(3)]
    found = score_labels(torch.from_numpy(scores), torch.from_numpy(labels))
    for row, label in enumerate(labels):
        confidence = shares[row, :3] - thresholds
        assert found.scores[row].item() == pytest.approx(np.delete(confidence, label).max() - confidence[label])
        expected = int(confidence.argmax())
        assert found.better[row].item() == (expected if expected != label else -1)
