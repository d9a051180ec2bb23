"""Splits that lie in files of their own, or are drawn by fraction."""

import csv
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from finetune.core.errors import RecipeError, TableError
from finetune.data.checks.check import read_settings
from finetune.data.table.table import RandomSplit, Table, TableFaultsError
from finetune.pipeline.recipe import read_recipe

from ..tables import GOOD, HEADER, Write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for at in range(9):
        (tmp_path / f"{at}.png").touch()
    for name, rows in (("train", range(4)), ("val", range(4, 6)), ("test_1", range(6, 7)), ("test_2", range(7, 9))):
        lines = [f"{at}.png,{'cat' if at % 2 else 'dog'},{at}" for at in rows]
        (tmp_path / f"{name}.csv").write_text("\n".join(["image,label,score", *lines]) + "\n")
    return tmp_path


# ---- files of their own


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


def test_a_file_of_two_splits_is_refused_however_it_is_spelt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "link").symlink_to(folder)
    for again in (folder / "train.csv", "./train.csv", "link/tr*.csv"):
        with pytest.raises(TableFaultsError, match=r"^train\.csv: Expected a file of one split"):
            Table("train.csv", label="label", split=RandomSplit(val=str(again), test=0.3)).read()
    with pytest.raises(TableFaultsError, match=r"^val\.csv: Expected a file of one split"):
        Table("train.csv", label="label", split=RandomSplit("val.csv", str(folder / "v*.csv"))).read()


def test_images_lie_beside_the_files_of_each_split(tmp_path: Path) -> None:
    names = [f"{at}.png" for at in range(8)]
    for split, number in (("train", 8), ("val", 3), ("test/a", 2), ("test/b", 2)):
        (tmp_path / split).mkdir(parents=True)
        for name in names[:number]:
            (tmp_path / split / name).touch()
        lines = ["image,label", *(f"{name},{'cat' if at % 2 else 'dog'}" for at, name in enumerate(names[:number]))]
        (tmp_path / split / "labels.csv").write_text("\n".join(lines) + "\n")
    path, val = str(tmp_path / "train/labels.csv"), str(tmp_path / "val/labels.csv")
    alone = Table(path, label="label", split=RandomSplit(val=0, test=0.3)).read()

    for image_id in (None, "image"):
        rows = Table(path, label="label", split=RandomSplit(val=val, test=0.3), image_id=image_id).read()
        assert rows.images.tolist() == [
            *(str(tmp_path / "train" / name) for name in names), *(str(tmp_path / "val" / name) for name in names[:3])
        ]  # fmt: skip
        assert rows.splits.tolist() == [*alone.splits.tolist(), 1, 1, 1]
        assert len(set(rows.image_ids.tolist())) == len(rows)

    (tmp_path / "test/a/labels.csv").write_text("image,label\na/0.png,cat\na/1.png,dog\n")
    (tmp_path / "test/b/labels.csv").write_text(f"image,label\nb/0.png,cat\n{tmp_path}/test/b/1.png,dog\n")
    files = RandomSplit(val=val, test=str(tmp_path / "test/*/labels.csv"))
    rows = Table(path, label="label", split=files).read()
    found = [str(Path(image).relative_to(tmp_path)) for image in rows.images[rows.indices("test")].tolist()]
    assert found == ["test/a/0.png", "test/a/1.png", "test/b/0.png", "test/b/1.png"]

    (tmp_path / "val" / "2.png").unlink()
    with pytest.raises(TableFaultsError, match=f"^{val}:4:image: Expected an image file.*{tmp_path}/val/2.png"):
        Table(path, label="label", split=RandomSplit(val=val, test=0.3)).read()
    rows = Table(path, label="label", split=RandomSplit(val=val, test=0.3), images=str(tmp_path / "train")).read()
    assert {Path(image).parent for image in rows.images.tolist()} == {tmp_path / "train"}


def test_files_beside_a_frame_are_refused() -> None:
    with pytest.raises(RecipeError, match="Expected data.table.split to be fractions for a DataFrame, but got files"):
        Table(pd.DataFrame({"image": ["a.png"], "label": ["x"]}), label="label", split=RandomSplit(test="b.csv"))


def test_faults_of_all_files_are_reported(folder: Path) -> None:
    (folder / "val.csv").write_text("image,label\n4.png,\n")
    (folder / "test_1.csv").write_text("image,label\nnone.png,cat\n")
    files = RandomSplit(val=str(folder / "val.csv"), test=str(folder / "test_1.csv"))
    with pytest.raises(TableFaultsError) as error:
        Table(str(folder / "train.csv"), label="label", split=files).read()
    assert [(Path(fault.file).name, fault.row) for fault in error.value.faults] == [("val.csv", 2), ("test_1.csv", 2)]
    with pytest.raises(TableFaultsError, match="Did you mean 'val.csv'?"):
        Table(str(folder / "train.csv"), label="label", split=RandomSplit(val=str(folder / "vals.csv"))).read()


def test_recipe_distinguishes_fractions_and_files(folder: Path) -> None:
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


# ---- drawn by fraction


def draw(count: int, classes: int, split: RandomSplit) -> np.ndarray:
    return split.draw([f"{image}.png" for image in range(count)], np.arange(count) % classes)


def test_fractions_hold_overall_and_in_each_class() -> None:
    codes = draw(1_000, 7, RandomSplit(val=0.1, test=0.2))
    assert np.bincount(codes).tolist() == [700, 100, 200]
    for label in range(7):
        train, val, test = np.bincount(codes[np.arange(1_000) % 7 == label], minlength=3) / (1_000 / 7)
        assert (train, val, test) == pytest.approx((0.7, 0.1, 0.2), abs=0.015)


def test_small_classes_keep_an_image_for_training() -> None:
    for size in (2, 3, 4):
        codes = draw(100 * size, 100, RandomSplit(val=0.1, test=0.3))
        labels = np.arange(100 * size) % 100
        assert set(labels[codes == 0].tolist()) == set(range(100))
        assert np.bincount(codes)[1:].tolist() == [10 * size, 30 * size]


def test_classes_share_what_the_smallest_cannot_give() -> None:
    labels = np.repeat(np.arange(201), [1_000, *[2] * 200])
    codes = RandomSplit().draw([f"{image}.png" for image in range(1_400)], labels)
    assert np.bincount(codes).tolist() == [1_400 - 280, 140, 140]
    # 999 of the 1,199 images that are no first ones of their class: its share of the 140, to within one image.
    assert np.bincount(codes[labels == 0])[1:] == pytest.approx(999 / 1_199 * 140, abs=1)


@pytest.mark.parametrize(("count", "classes"), [(2, 1), (20, 19), (22, 20)])
def test_the_test_comes_first_where_few_can_be_held_out(count: int, classes: int) -> None:
    codes = draw(count, classes, RandomSplit(val=0.4, test=0.05))
    assert np.bincount(codes, minlength=3).tolist() == [classes, count - classes - 1, 1]


def test_draw_is_the_same_for_every_order_and_follows_the_seed() -> None:
    paths = np.array([f"{image}.png" for image in range(200)])
    labels = np.arange(200) % 3
    order = np.random.default_rng(0).permutation(200)
    codes = RandomSplit().draw(paths.tolist(), labels)
    assert (RandomSplit().draw(paths[order].tolist(), labels[order]) == codes[order]).all()
    assert (RandomSplit(seed=1).draw(paths.tolist(), labels) != codes).any()


def test_draw_without_labels_by_hand() -> None:
    paths = [f"{image}.png" for image in range(10)]
    ranked = sorted(paths, key=lambda path: blake2b(f"3\0{path}".encode(), digest_size=8).digest())
    codes = RandomSplit(val=0.1, test=0.1, seed=3).draw(paths, np.zeros(10, dtype=np.int64))
    found = {path: int(code) for path, code in zip(paths, codes, strict=True)}
    # Of the nine after the first, two evenly spaced ones: positions 9/4 and 27/4, rounded down.
    assert [found[path] for path in ranked] == [0, 0, 0, 1, 0, 0, 0, 2, 0, 0]


def test_draw_does_not_change_between_releases() -> None:
    codes = draw(40, 4, RandomSplit(val=0.1, test=0.2, seed=0))
    assert "".join(map(str, codes)) == PINNED


PINNED = "0220111100000000000200000002202020000200"


def test_split_goes_by_image_wherever_the_table_lies(tmp_path: Path) -> None:
    drawn = []
    for place in ("here", "there"):
        folder = tmp_path / place
        folder.mkdir()
        with (folder / "table.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "caption"])
            for image in range(50):
                (folder / f"{image}.png").touch()
                writer.writerows([(f"{image}.png", f"caption {text} of {image}") for text in range(5)])
        rows = Table(str(folder / "table.csv"), caption="caption").read()
        by_image = Counter(zip(rows.image_ids.tolist(), rows.splits.tolist(), strict=True))
        assert set(by_image.values()) == {5}
        assert [len(rows.indices(split)) for split in ("train", "val", "test")] == [200, 25, 25]
        drawn.append(rows.splits.tolist())
    assert drawn[0] == drawn[1]


def test_one_image_has_no_test_split(write: Write) -> None:
    with pytest.raises(TableError, match="Expected rows in the split 'test'"):
        Table(str(write(HEADER, GOOD[0])), caption="caption").read()


def test_classes_of_one_image_have_no_test_split(folder: Path) -> None:
    lines = [f"{at}.png,class {at}" for at in range(9)]
    (folder / "train.csv").write_text("\n".join(["image,label", *lines]) + "\n")
    repair = "give a fraction above 0 and add images, as each class keeps one for training"
    with pytest.raises(TableFaultsError, match=rf"The rows are: 9 train, 0 val, 0 test\. Mark more rows .*{repair}\."):
        Table(str(folder / "train.csv"), label="label").read()


def test_no_validation_asked_for() -> None:
    assert set(draw(50, 2, RandomSplit(val=0.0, test=0.2)).tolist()) == {0, 2}


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.1), (0.1, 1.0)])
def test_fractions_out_of_range(val: float, test: float) -> None:
    with pytest.raises(RecipeError, match=r"Expected split\.\w+ to be a fraction from 0 to below 1"):
        RandomSplit(val=val, test=test)


def test_fractions_leave_nothing() -> None:
    with pytest.raises(RecipeError, match=r"Expected split\.val \+ split\.test to be below 1, but got 0\.6 \+ 0\.5"):
        RandomSplit(val=0.6, test=0.5)
