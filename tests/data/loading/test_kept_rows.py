"""What a data module makes of a kept table is what it makes of one that was read."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.data.checks.once import place_once
from finetune.data.checks.seen import SeenTable, compare_seen, is_as_seen, write_seen
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table import kept
from finetune.data.table.table import Table
from finetune.model.base import Base


@pytest.fixture(scope="module")
def base() -> Base:
    return Base.open("align-mini")


@pytest.fixture
def build(colour_table: Path, base: Base, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Builds a data module; its tables are kept, or as they are small they are not."""
    monkeypatch.setenv("ALIGN_FINETUNE_CACHE", str(tmp_path / "cache"))

    def build(keeps: bool, workers: int = 0, **settings: object) -> ImageTextDataModule:
        monkeypatch.setattr(kept, "KEPT_FROM", 0 if keeps else 1 << 40)
        table = Table(str(colour_table), **({"label": "label", "split": "split"} | settings))
        data = ImageTextDataModule(
            table, base, retention=[table], image_size=32, batch_size=16, num_workers=workers, cache=None
        )
        assert (data.rows.kept is not None) == keeps
        return data

    return build


@pytest.mark.parametrize("settings", [{}, {"caption": "label", "label": None}, {"image_id": "label"}], ids=str)
def test_batches_concerns_and_the_table_a_run_keeps_are_the_same(build, settings, tmp_path: Path) -> None:
    expected, *found = (build(keeps, **settings) for keeps in (False, True, True))
    write_seen(expected.rows, tmp_path / "expected.parquet")
    for data in found:
        for one, other in zip(_loaders(expected), _loaders(data), strict=True):
            for before, after in zip(one, other, strict=True):
                assert all(map(torch.equal, before, after))
        assert np.array_equal(data.rows.caption_ids, expected.rows.caption_ids)
        assert data.find_concerns() == expected.find_concerns()
        found_about = {concern.about for concern in data.find_concerns()} - {"few_test_rows"}
        assert bool(found_about) == ("image_id" in settings)  # of labels in several splits
        write_seen(data.rows, tmp_path / "found.parquet")
        assert is_as_seen(data.rows, tmp_path / "found.parquet")
        assert not is_as_seen(data.rows, tmp_path / "expected.parquet")
        assert not is_as_seen(expected.rows, tmp_path / "found.parquet")
        seen = SeenTable.read(tmp_path / "found.parquet")
        assert seen.rows.equals(SeenTable.read(tmp_path / "expected.parquet").rows)
        assert seen.compare(expected.rows).changes == ()
        for path in (tmp_path / "found.parquet", tmp_path / "expected.parquet"):  # as known, and by a comparison
            changes, former = compare_seen(data.rows, path)
            assert changes == ()
            assert former.dtype == np.int8
            assert np.array_equal(former, seen.compare(data.rows).former)


def _loaders(data: ImageTextDataModule):
    return data.train_dataloader(), data.val_dataloader(), data.test_dataloader()


def test_what_was_computed_of_a_table_is_not_computed_again(build) -> None:
    data = build(True, caption="label", label=None)
    found = data.find_concerns()
    files = {file: file.stat().st_mtime_ns for file in data.rows.kept.iterdir() if file.name != "images.json"}
    again = build(True, caption="label", label=None)
    assert again.find_concerns() == found
    assert {file: file.stat().st_mtime_ns for file in files} == files
    assert len({file.name.split("-")[0] for file in files} & {"texts", "concerns", "limits"}) == 3
    moved = again.with_splits(np.zeros(len(again.rows), dtype=np.int64))
    assert place_once(moved.rows, "texts.arrow", None) is not None
    moved.find_concerns()  # of these splits, kept nowhere
    assert len([*data.rows.kept.iterdir()]) == len(files) + 1


@pytest.mark.slow
def test_workers_that_are_spawned_open_the_file(build) -> None:
    expected, data = build(False), build(True, workers=1)
    loader = data.train_dataloader()
    loader.multiprocessing_context = multiprocessing.get_context("spawn")
    for before, after in zip(expected.train_dataloader(), loader, strict=True):
        assert all(map(torch.equal, before, after))
