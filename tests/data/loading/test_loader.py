"""Rows whose images cannot be read: an error that names them, or left out and listed, with worker processes too."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import albumentations
import pandas as pd
import pytest
import torch
from lightning import Trainer
from PIL import Image

from finetune.core.errors import TableError
from finetune.core.types import Batch
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import CaptionList, Table
from finetune.training.task import AlignTask

# Of the 36 colours: training rows first, then validation and test.
BAD = {"0.png": "train", "5.png": "train", "13.png": "train", "6.png": "val", "35.png": "test"}


@pytest.fixture
def folder(colour_table: Path, tmp_path: Path) -> Path:
    """A copy of the colours with five images that are cut off."""
    shutil.copytree(colour_table.parent, tmp_path / "colours")
    for name in BAD:
        file = tmp_path / "colours" / name
        file.write_bytes(file.read_bytes()[:1_000])
    return tmp_path / "colours"


def module(folder: Path, workers: int = 0, on_bad_image: str = "skip", **options: object) -> ImageTextDataModule:
    settings = {"batch_size": 4, "image_size": 64} | options
    table = Table(str(folder / "colours.csv"), label="label", split="split")
    return ImageTextDataModule(table, "align-mini", num_workers=workers, on_bad_image=on_bad_image, **settings)


def without(batch: Batch, rows: set[int]) -> Batch:
    kept = torch.tensor([row not in rows for row in batch.rows.tolist()])
    return Batch(*(part[kept] for part in batch))


def listed(data: ImageTextDataModule) -> list[tuple[str, str, str]]:
    return [(Path(row.image).name, row.row, row.reason[:23]) for row in data.skipped]


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_are_left_out_and_the_others_are_as_ever(colour_table: Path, folder: Path, workers: int) -> None:
    data, whole = module(folder, workers), module(colour_table.parent)
    bad = {int(name.removesuffix(".png")) for name in BAD}
    for epoch in (0, 1):
        loader, expected = data.train_dataloader(), whole.train_dataloader()
        for each in (loader, expected):
            each.batch_sampler.set_epoch(epoch)
        found = list(loader)
        assert len(found) == len(loader) == len(expected)
        assert sum(len(batch.rows) for batch in found) == 18 - 3
        for one, other in zip(found, expected, strict=True):
            assert all(torch.equal(*parts) for parts in zip(one, without(other, bad), strict=True))
    reason = "image file is truncated"
    assert listed(data) == [("0.png", "2", reason), ("5.png", "7", reason), ("13.png", "15", reason)]
    for split, rows in (("val", 9 - 1), ("test", 9 - 1)):
        assert sum(len(batch.rows) for batch in data.loader(split)) == rows
    assert [row.row for row in data.skipped] == ["2", "7", "8", "15", "37"]
    assert data.skipped[0].file == str(folder / "colours.csv")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_names_row_column_reason_and_repair(folder: Path, workers: int) -> None:
    with pytest.raises(TableError) as caught:
        list(module(folder, workers, "error").loader("test"))
    message = str(caught.value)
    assert message.startswith(f"{folder / 'colours.csv'}:37:image: Expected a whole image (BMP, GIF, JPEG, PNG, TIFF")
    assert "/35.png'. Reading it failed: image file is truncated" in message
    assert "leave them out with data.on_bad_image: skip.\n`finetune check --full` finds all such images." in message
    assert "Traceback" not in message


def test_the_position_in_an_epoch_counts_batches_not_readable_rows(folder: Path) -> None:
    data = module(folder)
    whole = list(data.train_dataloader())
    loader = data.train_dataloader()
    stream = iter(loader)
    for _ in range(3):
        next(stream)
    restored = module(folder).train_dataloader()
    restored.load_state_dict(loader.state_dict())
    assert [batch.rows.tolist() for batch in restored] == [batch.rows.tolist() for batch in whole[3:]]


def test_metrics_are_those_of_the_table_without_the_rows(
    folder: Path, tiny: str, build_trainer: Callable[..., Trainer]
) -> None:
    table = pd.read_csv(folder / "colours.csv")
    table[~table["image"].isin(BAD)].to_csv(folder / "fewer.csv", index=False)

    def measure(name: str) -> dict[str, float]:
        data = ImageTextDataModule(
            Table(str(folder / name), caption="caption", split="split"), tiny, batch_size=4, on_bad_image="skip"
        )
        trainer = build_trainer()
        task = AlignTask(tiny, image_lora=None, text_lora=None)
        return trainer.test(task, data, verbose=False)[0] | trainer.validate(task, data, verbose=False)[0]

    found, expected = measure("colours.csv"), measure("fewer.csv")
    losses = {"val/loss"}  # a mean over batches, which differ
    assert {key: found[key] for key in found.keys() - losses} == pytest.approx(
        {key: expected[key] for key in expected.keys() - losses}
    )


def test_an_evaluation_batch_without_any_image_is_passed_over(
    folder: Path, tiny: str, build_trainer: Callable[..., Trainer]
) -> None:
    data = module(folder, batch_size=8)  # nine test rows: the last one alone in its batch, and bad
    assert [len(batch.rows) for batch in data.loader("test")] == [8]
    metrics = build_trainer().test(AlignTask(tiny, image_lora=None, text_lora=None), data, verbose=False)[0]
    assert 0 <= metrics["test/accuracy"] <= 1


def test_a_training_batch_without_any_image_stops(folder: Path) -> None:
    with pytest.raises(TableError, match=r"each training batch to have an image .* raise data\.batch_size, if"):
        list(module(folder, batch_size=1).train_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_split_without_any_image_stops(folder: Path, workers: int) -> None:
    for index in range(36):
        (folder / f"{index}.png").write_bytes(b"")
    with pytest.raises(TableError, match=r"each split to have an image .*: an empty file\)\. .* check --full"):
        list(module(folder, workers).loader("val"))


def test_the_witness_holds_rows_that_can_be_read(folder: Path) -> None:
    data = module(folder)
    assert data.held_back(4).rows.tolist() == [7, 8, 18, 19]
    assert [row.row for row in data.skipped] == ["8"]
    with pytest.raises(TableError, match="colours.csv:8:image: Expected a whole image"):
        module(folder, on_bad_image="error").held_back(4)


def test_a_place_with_several_captions_is_listed_once(folder: Path) -> None:
    frame = pd.DataFrame({"image": ["0.png", "1.png"], "captions": ['["a", "b"]', '["c"]'], "split": ["test", "test"]})
    frame.to_json(folder / "two.jsonl", orient="records", lines=True)
    table = Table(str(folder / "two.jsonl"), caption=CaptionList("captions"), split="split")
    data = ImageTextDataModule(table, "align-mini", image_size=32, on_bad_image="skip")
    assert [batch.rows.tolist() for batch in data.loader("test")] == [[2]]
    assert [(row.row, Path(row.image).name) for row in data.skipped] == [("1", "0.png")]
    data.bad_images.on_bad_image = "error"
    with pytest.raises(TableError) as caught:
        list(data.loader("test"))
    assert str(caught.value).count("two.jsonl:1:image") == 1


def test_a_run_that_goes_on_remembers_what_was_left_out(
    folder: Path, tiny: str, build_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = build_trainer(max_steps=1, limit_val_batches=0)
    data = module(folder, batch_size=18)
    trainer.fit(AlignTask(tiny), data)
    assert [row.row for row in data.skipped] == ["2", "7", "15"]
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    for name in BAD:  # repaired in between
        shutil.copy(folder / "1.png", folder / name)
    again = module(folder, batch_size=18)
    task = AlignTask(tiny)
    build_trainer(max_steps=2, max_epochs=2, limit_val_batches=0).fit(task, again, ckpt_path=tmp_path / "stopped.ckpt")
    assert task.trainer.global_step == 2
    assert again.skipped == data.skipped


def test_a_program_that_leaves_an_epoch_half_read_ends(colour_table: Path, tiny: str) -> None:
    program = f"""
from finetune import ImageTextDataModule, Table

table = Table({str(colour_table)!r}, caption="caption", split="split")
batches = iter(ImageTextDataModule(table, {tiny!r}, num_workers=2, batch_size=4).train_dataloader())
print(len(next(batches).rows))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "4\n"


def test_another_word_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="on_bad_image to be error or skip, but got 'ignore'"):
        module(folder, on_bad_image="ignore")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_the_augmentations_refuse_is_an_error_of_its_row(
    colour_table: Path, tmp_path: Path, workers: int
) -> None:
    shutil.copytree(colour_table.parent, tmp_path / "colours")
    Image.new("RGB", (9, 7)).save(tmp_path / "colours" / "5.png")
    crops = [albumentations.RandomCrop(8, 8)]
    stopped, skipping = (
        module(tmp_path / "colours", workers, on_bad_image, augmentations=crops) for on_bad_image in ("error", "skip")
    )
    with pytest.raises(TableError, match=r"colours.csv:7:image: .*fail on 9 x 7 pixels: Crop.*PadIfNeeded") as caught:
        list(stopped.train_dataloader())
    assert "Traceback" not in str(caught.value)
    assert "Save it again" not in str(caught.value)
    assert sum(len(batch.rows) for batch in skipping.train_dataloader()) == 17
    assert [row.row for row in skipping.skipped] == ["7"]
