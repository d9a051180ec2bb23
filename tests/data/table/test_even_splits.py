"""The draw of the data sets that the toolkit prepares: even shares of each label."""

import hashlib

import numpy as np
import pytest

from finetune.data.table.even_splits import draw_evenly, draw_number


def draw(labels: np.ndarray, val: float, test: float) -> np.ndarray:
    return draw_evenly([f"{image}.png" for image in range(len(labels))], labels, val, test)


def test_fractions_hold_overall_and_in_each_class() -> None:
    codes = draw(np.arange(1_000) % 7, val=0.1, test=0.2)
    assert np.bincount(codes).tolist() == [700, 100, 200]
    for label in range(7):
        train, val, test = np.bincount(codes[np.arange(1_000) % 7 == label], minlength=3) / (1_000 / 7)
        assert (train, val, test) == pytest.approx((0.7, 0.1, 0.2), abs=0.015)


def test_classes_share_what_the_smallest_cannot_give() -> None:
    labels = np.repeat(np.arange(201), [1_000, *[2] * 200])
    codes = draw(labels, val=0.1, test=0.1)
    assert np.bincount(codes).tolist() == [1_400 - 280, 140, 140]
    assert set(labels[codes == 0].tolist()) == set(range(201))
    # 999 of the 1,199 images that are no first ones of their class: its share of the 140, to within one image.
    assert np.bincount(codes[labels == 0])[1:] == pytest.approx(999 / 1_199 * 140, abs=1)


def test_the_order_of_the_images_does_not_count() -> None:
    labels, order = np.arange(200) % 3, np.random.default_rng(0).permutation(200)
    keys = np.array([f"{image}.png" for image in range(200)])
    shuffled = draw_evenly(keys[order].tolist(), labels[order], 0.1, 0.1)
    assert (shuffled == draw(labels, 0.1, 0.1)[order]).all()


def test_a_number_is_the_hash_of_its_text_and_spreads_evenly() -> None:
    texts = ["", "crow", "räuchermännchen", *map(str, range(2000))]
    numbers = [draw_number(text) for text in texts]
    for text, number in zip(texts, numbers, strict=True):
        assert number == int(hashlib.sha256(text.encode("utf-8")).hexdigest()[:12], 16) / 16**12
    assert np.histogram(numbers, bins=10, range=(0, 1))[0] == pytest.approx(200, abs=50)
