"""Loaders with kept images give the batches of loaders without, and keep what is not augmented."""

import warnings
from pathlib import Path

import albumentations
import pytest

from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table


def module(colour_table, tiny, cache: Path | None, **options) -> ImageTextDataModule:
    table = Table(str(colour_table), label="label", split="split")
    return ImageTextDataModule(table, tiny, batch_size=5, cache=None if cache is None else str(cache), **options)


def batches(loader) -> list:
    return [[field.tolist() for field in batch] for batch in loader]


def count(folder: Path) -> int:
    return sum(index.stat().st_size // 20 for index in folder.glob("pixels-*/index"))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_kept_images_are_those_decoded_anew(colour_table, tiny, tmp_path, workers):
    plain, first, later = (module(colour_table, tiny, cache, num_workers=workers) for cache in (None, *2 * [tmp_path]))
    expected = batches(plain.train_dataloader())
    loader = first.train_dataloader()
    for found in (loader, loader, later.train_dataloader()):
        assert batches(found) == expected
    assert count(tmp_path) == len(plain.rows.indices("train")) == 18
    assert batches(first.val_dataloader()) == batches(plain.val_dataloader())
    assert count(tmp_path) == 27


def test_what_is_augmented_is_not_kept(colour_table, tiny, tmp_path):
    flip = albumentations.HorizontalFlip(p=0.5)
    data = module(colour_table, tiny, tmp_path, augmentations=flip)
    assert batches(data.train_dataloader()) == batches(
        module(colour_table, tiny, None, augmentations=flip).train_dataloader()
    )
    assert count(tmp_path) == 0
    batches(data.test_dataloader())
    assert count(tmp_path) == 9


def test_a_place_that_takes_no_files_is_named_once(colour_table, tiny, tmp_path):
    (tmp_path / "file").touch()
    data = module(colour_table, tiny, tmp_path / "file", num_workers=2)
    loader = data.train_dataloader()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert batches(loader) == batches(loader) == batches(module(colour_table, tiny, None).train_dataloader())
    assert [str(one.message) for one in caught] == [
        f"Decoded images are no longer kept in {tmp_path / 'file'}: Not a directory. "
        "Set data.cache to another folder, or to null."
    ]


def test_retention_tables_keep_theirs_in_the_same_place(colour_table, tiny, tmp_path):
    data = module(colour_table, tiny, tmp_path, retention=[Table(str(colour_table), caption="caption", split="split")])
    batches(next(iter(data.retention.values())).test_dataloader())
    assert count(tmp_path) == 9
