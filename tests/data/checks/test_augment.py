"""Augmentations tried on the sizes of training images, against training itself."""

from pathlib import Path

import albumentations as A
import pytest

from finetune.data.checks.augment import find_refused
from finetune.data.checks.decode import decode_images
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.prepare.augmentation import Augmentation
from finetune.data.table.table import Table

from ..checked import write
from ..images import draw

SIZES = {
    "a.png": (40, 30),
    "b.png": (20, 40),
    "c.png": (40, 20),
    "d.png": (24, 24),
    "e.png": (8, 8),
    "f.png": (200, 90),
}
CROP = A.RandomCrop(24, 24)


@pytest.mark.parametrize(
    ("transforms", "refused"),
    [
        ([CROP], "bc"),
        ([A.OneOf([A.HorizontalFlip(), A.Sequential([CROP], p=0.5)])], "bc"),
        ([A.SomeOf([A.NoOp(), A.OneOf([CROP, A.NoOp()])], n=1)], "bc"),
        ([A.PadIfNeeded(24, 24), CROP], ""),
        ([A.RandomResizedCrop((24, 24))], ""),
        ([A.CenterCrop(24, 30), A.NoOp()], "bcd"),
    ],
)
def test_crops_larger_than_some_images_are_found_at_any_depth(folder: Path, transforms: list, refused: str) -> None:
    for seed, (name, size) in enumerate(SIZES.items()):
        draw(folder / name, seed, size)
    splits = ["train", "train", "train", "train", "test", "train"]
    path = write(folder, image=[*SIZES], label=["x", "y"] * 3, split=splits)
    table = Table(path, label="label", split="split")
    rows = table.read()
    faults = find_refused(rows, "image", decode_images(rows, "image").sizes, Augmentation(transforms), seed=0)
    assert "".join(Path(str(fault.value)).stem for fault in faults) == refused
    data = ImageTextDataModule(table, "align-mini", augmentations=transforms, image_size=32, on_bad_image="skip")
    loader = data.train_dataloader()
    for epoch in range(10):
        loader.batch_sampler.set_epoch(epoch)
        assert sum(len(batch.rows) for batch in loader) >= 5 - len(refused)
    assert "".join(Path(row.image).stem for row in data.skipped) == refused


def test_the_fault_names_image_size_and_repair(folder: Path) -> None:
    rows = Table(write(folder, image=["a.png", "b.png"], label=["x", "y"], split="train"), label="label", split="split")
    read = rows.read(required=())
    sizes = decode_images(read, "image").sizes
    (fault, _) = find_refused(read, "image", sizes, Augmentation([A.RandomCrop(64, 64)]), seed=0)
    text = str(fault)
    assert text.startswith(
        f"{folder / 't.csv'}:2:image: Expected an image that suits data.augmentations, but got '{folder}"
    )
    assert "fail on 40 x 30 pixels: Crop size" in text
    assert "PadIfNeeded" in text
    assert "Save it again" not in text


def test_a_transform_that_fails_on_every_size_is_not_blamed_on_the_size(folder: Path) -> None:
    table = Table(
        write(folder, image=["a.png", "b.png"], label=["x", "y"], split="train"), label="label", split="split"
    )
    read = table.read(required=())
    wrong = A.Lambda(image=lambda image, **_: image[None, ..., 7])
    (fault, _) = find_refused(read, "image", decode_images(read, "image").sizes, Augmentation([wrong]), seed=0)
    assert "Correct or remove the transform that fails" in str(fault)
    assert "PadIfNeeded" not in str(fault)
