"""Augmentations: a function of seed, epoch and row alone."""

import time

import albumentations
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from finetune.core.errors import RecipeError
from finetune.data.prepare.augmentation import Augmentation
from finetune.data.prepare.images import ImagePreparation

from ..images import noise
from ..processors import PROCESSORS

IMAGE = Image.fromarray(noise(60, 40, 3))
FLIPS = [albumentations.HorizontalFlip(p=0.5), albumentations.VerticalFlip(p=0.5)]
MANY = [
    albumentations.Affine(translate_percent=(-0.1, 0.1), rotate=(-15, 15), scale=(0.9, 1.1), p=1.0),
    albumentations.OneOf([albumentations.HorizontalFlip(), albumentations.ColorJitter()], p=0.9),
    albumentations.RandomResizedCrop((50, 50)),
    albumentations.GaussNoise(p=0.5),
]


def test_augmentation_follows_seed_epoch_and_row_alone() -> None:
    augmentation = Augmentation(MANY)
    first = augmentation(IMAGE, 0, 1, 2)
    assert first.dtype == np.uint8
    assert first.shape == (50, 50, 3)
    others = [augmentation(IMAGE, *key) for key in ((1, 1, 2), (0, 0, 2), (0, 1, 3), (0, 2, 1), (2, 1, 0))]
    assert not any(np.array_equal(first, other) for other in others)
    assert np.array_equal(augmentation(IMAGE, 0, 1, 2), first)
    assert np.array_equal(Augmentation(MANY)(IMAGE, 0, 1, 2), first)


def test_transforms_draw_independently_of_each_other() -> None:
    augmentation, pixels = Augmentation(FLIPS), np.asarray(IMAGE)
    flipped = [pixels, pixels[:, ::-1], pixels[::-1], pixels[::-1, ::-1]]
    counts = [0, 0, 0, 0]
    for row in range(400):
        found = augmentation(IMAGE, 0, 0, row)
        counts[[np.array_equal(found, expected) for expected in flipped].index(True)] += 1
    assert min(counts) > 70  # 100 expected, standard deviation 9


@pytest.mark.parametrize("alone", [True, False])
def test_a_composition_is_applied_as_one_and_not_as_a_list_of_its_parts(alone: bool) -> None:
    turned = albumentations.OneOf([albumentations.HorizontalFlip(p=1), albumentations.VerticalFlip(p=1)], p=1)
    augmentation = Augmentation(turned if alone else [turned])
    pixels = np.asarray(IMAGE)
    found = {augmentation(IMAGE, 0, 0, row).tobytes() for row in range(20)}
    assert found == {pixels[:, ::-1].tobytes(), pixels[::-1].tobytes()}


class Augmented(Dataset[np.ndarray]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> np.ndarray:
        return Augmentation(MANY)(IMAGE, 7, 3, row)


def test_augmentation_does_not_depend_on_workers() -> None:
    alone, two, three = (
        np.concatenate([part.numpy() for part in DataLoader(Augmented(), batch_size=3, num_workers=workers)])
        for workers in (0, 2, 3)
    )
    assert np.array_equal(alone, two)
    assert np.array_equal(alone, three)
    assert len({picture.tobytes() for picture in alone}) == 12


@pytest.mark.parametrize("name", ["align-base", "align-mini"])
def test_augmented_images_are_prepared_like_any_other(name: str) -> None:
    processor = PROCESSORS[name]
    preparation = ImagePreparation.from_processor(processor)
    for transforms in (MANY, FLIPS):
        pixels = Augmentation(transforms)(IMAGE, 0, 0, 0)
        unscaled = {"do_rescale": False, "do_normalize": False}
        expected = processor(Image.fromarray(pixels), **unscaled, return_tensors="np")["pixel_values"][0]
        assert np.array_equal(preparation(Image.fromarray(pixels)), expected)


@pytest.mark.parametrize(
    ("last", "found"),
    [
        (albumentations.Normalize(), r"float32 of shape \(512, 512, 3\)"),
        (albumentations.ToFloat(), r"float32 of shape \(512, 512, 3\)"),
        (albumentations.ToTensorV2(), r"torch.uint8 of shape \(3, 512, 512\)"),
    ],
)
def test_what_leaves_no_image_is_refused_before_any_is_opened(last: albumentations.BasicTransform, found: str) -> None:
    with pytest.raises(RecipeError, match=f"Expected data.augmentations to return RGB levels, .* but got {found}"):
        Augmentation([*FLIPS, last])
    with pytest.raises(RecipeError, match=r"Expected data.augmentations to return RGB levels"):
        Augmentation([albumentations.OneOf([*FLIPS, albumentations.Sequential([last], p=1)], p=1)])


def test_a_crop_of_large_photographs_is_no_mistake() -> None:
    pixels = Augmentation([albumentations.RandomCrop(600, 700)])(Image.new("RGB", (800, 800)), 0, 0, 0)
    assert pixels.shape == (600, 700, 3)


def test_reseeding_costs_little() -> None:
    augmentation = Augmentation([albumentations.NoOp(p=0) for _ in range(4)])
    image = Image.new("RGB", (8, 8))
    augmentation(image, 0, 0, 0)
    started = time.perf_counter()
    for row in range(300):
        augmentation(image, 0, 0, row)
    assert (time.perf_counter() - started) / 300 < 1e-3  # 0.1 ms here; wide, as machines are shared
