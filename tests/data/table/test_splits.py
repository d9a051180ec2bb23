"""Splits that lie in files of their own, or are drawn by fraction."""

import csv
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from finetune.core.errors import RecipeError, TableError
from finetune.data.checks.check import read_settings
from finetune.data.table.row_images import hash_keys
from finetune.data.table.splits import Draw
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


def draw(count: int, classes: int, split: RandomSplit) -> Draw:
    return draw_of([f"{image}.png" for image in range(count)], np.arange(count) % classes, split)


def draw_of(keys: Sequence[str], labels: np.ndarray, split: RandomSplit) -> Draw:
    return split.draw(hash_keys(keys, len(keys), split.seed), labels)


def number(key: str, seed: int) -> Fraction:
    """An image's number from 0 to 1."""
    return Fraction(int(blake2b(f"{seed}\0{key}".encode(), digest_size=8).hexdigest(), 16), 2**64)


def draw_by_hand(keys: Sequence[str], labels: Sequence[int], split: RandomSplit) -> tuple[dict[str, int], set[str]]:
    """The split of each image, and the exceptions, image by image."""
    numbers = {key: number(key, split.seed) for key in keys}
    of: dict[str, set[int]] = {key: set() for key in keys}
    for key, label in zip(keys, labels, strict=True):
        of[key].add(label)
    val, test = split.fractions
    drawn = {key: 2 if at < test else 1 if at < test + val else 0 for key, at in numbers.items()}
    found = dict(drawn)
    for key in {
        max((key for key in of if label in of[key]), key=lambda key: numbers[key])
        for label in set(labels)
        if not any(label in of[key] for key in of if drawn[key] == 0)
    }:
        found[key] = 0
    for wanted, fraction in ((2, test), (1, val)):
        if fraction and wanted not in found.values():
            train = [key for key in of if found[key] == 0]
            spare = [key for key in train if all(sum(label in of[one] for one in train) > 1 for label in of[key])]
            held = [key for key in of if found[key] == 3 - wanted]
            if spare:
                found[min(spare, key=lambda key: numbers[key])] = wanted
            elif len(held) >= wanted % 2 + 1:
                found[(min if wanted == 2 else max)(held, key=lambda key: numbers[key])] = wanted
    return found, {key for key in of if found[key] != drawn[key]}


def random_table(random: np.random.Generator) -> tuple[list[str], list[int]]:
    """Up to 40 rows of some images, in 1 to 12 classes, some of them small."""
    images = [f"{image}.png" for image in random.integers(0, 1_000, random.integers(1, 41)).tolist()]
    classes = int(random.integers(1, 13))
    return images, np.minimum(
        random.integers(0, classes, len(images)), random.integers(0, classes, len(images))
    ).tolist()


def test_draw_by_hand() -> None:
    """Random tables whose images recur, under several labels too; from none to most of the images held out."""
    random = np.random.default_rng(0)
    exceptions = Counter[tuple[int, int]]()
    for _ in range(300):
        images, labels = random_table(random)
        val, test = random.choice([0.0, 0.02, 0.1, 0.3, 0.45], 2).tolist()
        split = RandomSplit(val, test, seed=int(random.integers(3)))
        found = draw_of(images, np.array(labels), split)
        expected, moved = draw_by_hand(images, labels, split)
        assert found.splits.tolist() == [expected[image] for image in images]
        assert {image for image, one, other in zip(images, *found, strict=True) if one != other} == moved
        exceptions.update(zip(found.drawn.tolist(), found.splits.tolist(), strict=True))
        assert set(np.array(labels)[found.splits == 0].tolist()) == set(labels)
        assert not test or len(set(images)) < 2 or 2 in found.splits or len(set(labels)) > 1
    assert {(2, 0), (1, 0), (0, 2), (0, 1), (1, 2), (2, 1)} <= set(exceptions)


def test_fractions_are_those_of_coins() -> None:
    """Overall, in each class, and in their variance: 400 draws of 500 images with their binomial distribution."""
    keys, labels = [f"{image}.png" for image in range(500)], np.arange(500) % 7
    draws = [draw_of(keys, labels, RandomSplit(0.1, 0.25, seed)) for seed in range(400)]
    assert all((found.splits == found.drawn).all() for found in draws)
    for split, share in ((1, 0.1), (2, 0.25)):
        for rows in (np.full(500, True), *(labels == label for label in range(7))):
            counts = np.array([(found.splits[rows] == split).sum() for found in draws])
            total = stats.binomtest(int(counts.sum()), int(rows.sum()) * 400, share)
            assert total.pvalue > 1e-3
            variance = rows.sum() * share * (1 - share)
            assert stats.chi2.sf((counts - rows.sum() * share).var() * 400 / variance, 400) > 1e-3
            assert stats.chi2.cdf((counts - rows.sum() * share).var() * 400 / variance, 400) > 1e-3


CHANGES = ("add 1 row", "add 10 rows", "remove 1 row", "remove half", "relabel 5 rows", "relabel all", "shuffle")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("rows", [12, 100, 1_000])
def test_a_table_that_changes_keeps_its_splits(change: str, rows: int) -> None:
    """Nothing moves but exceptions; with twenty rows a class or more there are hardly any."""
    random = np.random.default_rng(0)
    moved = kept = 0
    for seed in range(40):
        split = RandomSplit(0.1, 0.1, seed)
        labels = dict(zip([f"{image}.png" for image in range(rows)], random.integers(0, 5, rows).tolist(), strict=True))
        after = dict(labels)
        if change.startswith("add"):
            after |= {f"new {image}.png": int(random.integers(0, 6)) for image in range(int(change.split()[1]))}
        elif change.startswith("remove"):
            for image in random.choice(rows, 1 if change.endswith("row") else rows // 2, replace=False).tolist():
                del after[f"{image}.png"]
        elif change.startswith("relabel"):
            for image in random.choice(rows, 5 if "5" in change else rows, replace=False).tolist():
                after[f"{image}.png"] = int(random.integers(0, 5))
        else:
            after = {image: labels[image] for image in random.permutation(list(labels)).tolist()}
        one, other = (draw_of([*table], np.array([*table.values()]), split) for table in (labels, after))
        before = dict(zip(labels, zip(*one, strict=True), strict=True))
        now = dict(zip(after, zip(*other, strict=True), strict=True))
        both = before.keys() & now.keys()
        changed = {image for image in both if before[image][0] != now[image][0]}
        exceptions = {image for image in both for split, drawn in (before[image], now[image]) if split != drawn}
        assert changed <= exceptions
        moved, kept = moved + len(changed), kept + len(both)
    assert rows < 100 or moved <= 0.001 * kept


@pytest.mark.parametrize("fractions", [(0.1, 0.1), (0.4, 0.05), (0.0, 0.01), (0.01, 0.5)])
def test_no_split_of_a_small_table_is_empty(fractions: tuple[float, float]) -> None:
    for count in range(2, 31):
        for classes in (1, 2, 5):
            found = np.bincount(draw(count, classes, RandomSplit(*fractions, seed=count)).splits, minlength=3)
            assert found[0] >= min(classes, count)
            assert (found[2] > 0) == (count > classes)
            assert (found[1] > 0) == (fractions[0] > 0 and count > classes + 1)


def test_small_classes_keep_an_image_for_training() -> None:
    for size in (1, 2, 3):
        found = draw(100 * size, 100, RandomSplit(val=0.1, test=0.3))
        labels = np.arange(100 * size) % 100
        assert set(labels[found.splits == 0].tolist()) == set(range(100))
        assert (found.splits[found.splits != found.drawn] == 0).all()
        assert (found.drawn != found.splits).sum() == sum(
            (found.drawn[labels == label] > 0).all() for label in range(100)
        )


def test_draw_follows_the_seed_and_higher_fractions_keep_the_test_rows() -> None:
    codes = draw(200, 3, RandomSplit()).splits
    assert (draw(200, 3, RandomSplit(seed=1)).splits != codes).any()
    assert ((draw(200, 3, RandomSplit(val=0.4)).splits == 2) == (codes == 2)).all()
    assert (draw(200, 3, RandomSplit(test=0.2)).splits[codes == 2] == 2).all()


def test_draw_does_not_change_between_releases() -> None:
    codes = draw(40, 4, RandomSplit(val=0.1, test=0.2, seed=0)).splits
    assert "".join(map(str, codes)) == PINNED


PINNED = "2000222102000222202021202020000210000000"


def test_a_file_that_grows_keeps_the_splits_of_its_images(folder: Path) -> None:
    """On disk, in several folders, with absolute paths, and with corrected labels."""
    lines = [f"{at}.png,{'cat' if at % 2 else 'dog'}" for at in range(9)]
    (folder / "train.csv").write_text("\n".join(["image,label", *lines]) + "\n")
    split = RandomSplit(0.3, 0.3, seed=2)
    before = Table(str(folder / "train.csv"), label="label", split=split).read()
    (folder / "more").mkdir()
    names = [f"{at}.png" for at in range(9)] + [f"more/{at}.png" for at in range(40)]
    for name in names[9:]:
        (folder / name).touch()
    lines = [
        f"{folder / name if at % 3 else './' + name},{'cow' if at in (3, 4) else 'cat'}"
        for at, name in enumerate(names)
    ]
    (folder / "train.csv").write_text("\n".join(["image,label", *lines]) + "\n")
    after = Table(str(folder / "train.csv"), label="label", split=split).read()
    assert after.images[:9].tolist() == before.images.tolist()
    assert after.splits[:9].tolist() == before.splits.tolist()
    assert after.drawn.tolist() == after.splits.tolist()
    assert set(before.splits.tolist()) == {0, 1, 2}


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
        assert set(rows.splits.tolist()) == {0, 1, 2}
        drawn.append(rows.splits.tolist())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("image_id", [None, "image"])
def test_a_path_spelt_in_two_ways_is_in_one_split_wherever_it_lies(tmp_path: Path, image_id: str | None) -> None:
    found = []
    for place in ("here", "there"):
        folder = tmp_path / place
        folder.mkdir()
        names = [f"{number}.png" for number in range(40)]
        for name in names:
            (folder / name).touch()
        lines = [f"{spelt},c" for name in names for spelt in (name, f"./{name}", folder / name)]
        (folder / "t.csv").write_text("\n".join(["image,caption", *lines]) + "\n")
        table = Table(str(folder / "t.csv"), caption="caption", split=RandomSplit(0.2, 0.2), image_id=image_id)
        found.append(table.read().splits.reshape(40, 3))
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] == found[0][:, :1]).all()
    assert len(np.unique(found[0])) == 3


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
    assert set(draw(50, 2, RandomSplit(val=0.0, test=0.2)).splits.tolist()) == {0, 2}


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.1), (0.1, 1.0)])
def test_fractions_out_of_range(val: float, test: float) -> None:
    with pytest.raises(RecipeError, match=r"Expected split\.\w+ to be a fraction from 0 to below 1"):
        RandomSplit(val=val, test=test)


def test_fractions_leave_nothing() -> None:
    with pytest.raises(RecipeError, match=r"Expected split\.val \+ split\.test to be below 1, but got 0\.6 \+ 0\.5"):
        RandomSplit(val=0.6, test=0.5)
