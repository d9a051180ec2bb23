"""Splits that lie in files of their own."""

from pathlib import Path

import pandas as pd
import pytest

from finetune.data.check import read_settings
from finetune.data.table import RandomSplit, Table, TableFaultsError
from finetune.errors import RecipeError
from finetune.recipe import read_recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for at in range(9):
        (tmp_path / f"{at}.png").touch()
    for name, rows in (("train", range(4)), ("val", range(4, 6)), ("test_1", range(6, 7)), ("test_2", range(7, 9))):
        lines = [f"{at}.png,{'cat' if at % 2 else 'dog'},{at}" for at in rows]
        (tmp_path / f"{name}.csv").write_text("\n".join(["image,label,score", *lines]) + "\n")
    return tmp_path


def test_a_file_or_pattern_for_each_split(folder: Path) -> None:
    files = RandomSplit(val=str(folder / "val.csv"), test=str(folder / "test_*.csv"))
    rows = Table(str(folder / "train.csv"), label="label", split=files, filter="score != 2").read()
    assert [Path(image).stem for image in rows.images.tolist()] == ["0", "1", "3", "4", "5", "6", "7", "8"]
    assert rows.splits.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert rows.place(7) == f"{folder / 'test_2.csv'}:3"
    assert rows.classes == ("cat", "dog")
    assert [removed.rows for removed in rows.removed] == [1]
    rows = Table(str(folder / "train.csv"), label="label", split=RandomSplit(val=0, test=files.test)).read()
    assert [len(rows.indices(split)) for split in ("train", "val", "test")] == [4, 0, 3]


def test_a_filter_may_leave_rows_of_such_files_alone(folder: Path) -> None:
    files = RandomSplit(val=0.5, test=str(folder / "test_*.csv"))
    rows = Table(str(folder / "train.csv"), label="label", split=files, filter="score > 6").read(required=())
    assert rows.splits.tolist() == [2, 2]
    with pytest.raises(TableFaultsError, match="Expected rows in the split 'train'"):
        rows.require("train", "test")


def test_one_split_is_drawn_beside_the_file_of_another(folder: Path) -> None:
    own = str(folder / "train.csv")
    mixed = Table(own, label="label", split=RandomSplit(0.25, str(folder / "val.csv"), seed=3)).read()
    alone = Table(own, label="label", split=RandomSplit(0.25, 0, seed=3)).read(required=())
    assert mixed.splits[:4].tolist() == alone.splits.tolist()
    assert sorted(mixed.splits.tolist()) == [0, 0, 0, 1, 2, 2]


def test_a_file_of_two_splits_is_refused(folder: Path) -> None:
    files = RandomSplit(val=0, test=str(folder / "test_1.csv"))
    with pytest.raises(TableFaultsError, match=r"test_1\.csv: Expected a file of one split, but got none\. Name it in"):
        Table(str(folder / "t*.csv"), label="label", split=files).read()


def test_files_beside_a_frame_are_refused() -> None:
    with pytest.raises(RecipeError, match="Expected fractions for data.table.split of a DataFrame, but got files"):
        Table(pd.DataFrame({"image": ["a.png"], "label": ["x"]}), label="label", split=RandomSplit(test="b.csv"))


def test_faults_of_all_files_are_told(folder: Path) -> None:
    (folder / "val.csv").write_text("image,label\n4.png,\n")
    (folder / "test_1.csv").write_text("image,label\nnone.png,cat\n")
    files = RandomSplit(val=str(folder / "val.csv"), test=str(folder / "test_1.csv"))
    with pytest.raises(TableFaultsError) as error:
        Table(str(folder / "train.csv"), label="label", split=files).read()
    assert [(Path(fault.file).name, fault.row) for fault in error.value.faults] == [("val.csv", 2), ("test_1.csv", 2)]
    with pytest.raises(TableFaultsError, match="Did you mean 'val.csv'?"):
        Table(str(folder / "train.csv"), label="label", split=RandomSplit(val=str(folder / "vals.csv"))).read()


def test_recipe_tells_fractions_and_files_apart(folder: Path) -> None:
    path = folder / "recipe.yaml"
    table = f"    path: {folder}/train.csv\n    label: label\n    split:\n"
    text = f"model:\n  checkpoint: align-mini\ndata:\n  table:\n{table}"
    path.write_text(f"{text}      val: {folder}/val.csv\n      test: {folder}/test_*.csv\n")
    recipe = read_recipe(path)
    data = recipe.build_data()
    assert data.table.split == RandomSplit(f"{folder}/val.csv", f"{folder}/test_*.csv")
    assert len(data.rows) == 9
    (folder / "again.yaml").write_text(recipe.resolved)
    assert read_recipe(folder / "again.yaml").build_data().table == data.table
    drawn = read_recipe(path, ["--data.table.split.val", "0.25"]).build_data().table
    assert drawn.split == RandomSplit(0.25, f"{folder}/test_*.csv")
    settings = read_settings(path, ["--data.table.split.val", "0.25"])
    assert settings is not None
    assert settings.table == drawn
    with pytest.raises(RecipeError, match="'data.table.split.vl'. Did you mean 'val'"):
        read_recipe(path, ["--data.table.split.vl", "0.1"])
