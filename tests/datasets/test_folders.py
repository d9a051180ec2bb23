"""Images in folders named by class as a table, which the toolkit and pandas read."""

import os
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from finetune.core.shipped import shipped_folder
from finetune.data.table.splits import SPLITS
from finetune.data.table.table import Table

main = runpy.run_path(str(shipped_folder("datasets") / "folders.py"))["main"]
Fill = Callable[..., Path]


@pytest.fixture
def fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fill:
    """Writes as many images into each folder."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)

    def write(counts: dict[str, int], folder: str = "rare") -> Path:
        for name, count in counts.items():
            place = Path(folder, name)
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
        return Path(folder)

    return write


def expected(folder: Path) -> list[tuple[str, str]]:
    """The images that lie there, by `Path.glob` alone."""
    paths = [path.as_posix() for path in folder.glob("*/[0-9]*.png")]
    return sorted((path, path.split("/")[-2]) for path in paths)


def test_the_folder_is_the_label(fill: Fill, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fill({"cat": 3, "ice cream, cold": 2})
    for name in ("notes.txt", ".DS_Store", ".thumbnail.png"):
        (folder / "cat" / name).touch()
    (folder / "stray.png").touch()
    (folder / ".cache").mkdir()
    assert main([str(folder)]) == 0
    found = pd.read_csv("rare.csv")
    assert list(found) == ["image", "label"]
    assert [*found.itertuples(index=False, name=None)] == expected(folder)
    assert capsys.readouterr().out.splitlines() == [
        "rare.csv: 5 images of 2 classes, 2 to 3 each",
        "left out: 1 file that is no image, 2 hidden files, 1 hidden folder, 1 image outside of a class's folder",
        "finetune check --config few_shot --data.table.path rare.csv",
    ]
    assert len(Table("rare.csv", label="label").read()) == 5
    assert main([str(folder)]) == 2
    assert "Remove it or pass --overwrite" in capsys.readouterr().err
    assert main([str(folder), "--overwrite"]) == 0


def test_folders_of_splits(fill: Fill, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fill({"train/cat": 3, "train/dog": 3, "Valid/cat": 1, "test/dog": 2})
    assert main([str(folder), "--output", "rare/table.csv"]) == 0
    assert "9 images (6 train, 1 val, 2 test) of 2 classes" in capsys.readouterr().out
    found = pd.read_csv("rare/table.csv")
    of = {"train": "train", "Valid": "val", "test": "test"}
    assert found["split"].tolist() == [of[image.split("/")[0]] for image in found["image"]]
    rows = Table("rare/table.csv", label="label", split="split").read()
    assert [len(rows.indices(split)) for split in SPLITS] == [6, 1, 2]


def test_a_class_may_be_called_test(fill: Fill) -> None:
    assert main([str(fill({"test": 2, "exam": 2}))]) == 0
    assert sorted(pd.read_csv("rare.csv")["label"]) == ["exam", "exam", "test", "test"]


def test_as_many_of_each_class_are_drawn(fill: Fill, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fill({"cat": 5, "dog": 9, "emu": 6})
    words = [str(folder), "--per_class_test", "3", "--per_class_val", "1", "--overwrite"]
    assert main(words) == 0
    found = pd.read_csv("rare.csv")
    counts = pd.crosstab(found["label"], found["split"])
    assert counts.to_dict("index") == {
        label: {"test": 3, "train": number - 4, "val": 1} for label, number in (("cat", 5), ("dog", 9), ("emu", 6))
    }
    assert capsys.readouterr().out.endswith("--data.table.path rare.csv --data.table.split split\n")
    first = Path("rare.csv").read_bytes()
    assert main(words) == 0
    assert Path("rare.csv").read_bytes() == first
    assert main([*words, "--seed", "1"]) == 0
    assert Path("rare.csv").read_bytes() != first
    assert main([str(folder), "--per_class_test", "5", "--overwrite"]) == 2
    assert "at least 6 images to draw from, 0 for val, 5 for test and one to train on, but got 'cat' 5. Lower" in (
        capsys.readouterr().err
    )


def test_a_split_that_no_folder_names_is_drawn_from_train(fill: Fill, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fill({"train/cat": 4, "train/dog": 4, "val/cat": 2})
    assert main([str(folder)]) == 0
    assert "no image is test: draw some with --per_class_test" in capsys.readouterr().out
    assert main([str(folder), "--per_class_test", "2", "--overwrite"]) == 0
    found = pd.read_csv("rare.csv")
    assert found.groupby(["split", "label"]).size().to_dict() == {
        ("test", "cat"): 2,
        ("test", "dog"): 2,
        ("train", "cat"): 2,
        ("train", "dog"): 2,
        ("val", "cat"): 2,
    }
    assert found["image"][found["split"] == "val"].str.startswith("rare/val/").all()
    assert main([str(folder), "--per_class_val", "1", "--overwrite"]) == 2
    assert "Expected no --per_class_val, as a folder is named val" in capsys.readouterr().err
    assert main([str(folder), "--per_class_test", "-1", "--overwrite"]) == 2
    assert "Expected --per_class_test to be a number from 0, but got -1" in capsys.readouterr().err


def test_a_table_elsewhere_names_the_folder_of_images(fill: Fill, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fill({"cat": 4, "dog": 4})
    Path("tables").mkdir()
    assert main([str(folder), "--output", "tables/rare.csv"]) == 0
    assert capsys.readouterr().out.endswith("--data.table.path tables/rare.csv --data.table.images rare\n")
    assert len(Table("tables/rare.csv", label="label", images="rare").read()) == 8
    os.chdir(folder)
    assert main(["."]) == 0
    assert len(Table("../rare.csv", label="label").read()) == 8


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"": 2}, "Expected rare to hold folders of images, named by class, but got none. Name the folder around"),
        ({"train/cat": 1, "dog": 1}, "splits (train, val, test) or none, but got 'train' and 'dog'. Move the others"),
        (
            {"train/cat": 1, "test": 1},
            "Expected rare/test to hold folders named by class, as 'train' does, but got images",
        ),
        ({"birds/crane": 1, "tools/crane": 1}, "but got 'birds/crane' and 'tools/crane', which would be one class"),
    ],
)
def test_folders_that_say_no_class(
    fill: Fill, capsys: pytest.CaptureFixture[str], counts: dict[str, int], message: str
) -> None:
    assert main([str(fill(counts))]) == 2
    assert message in capsys.readouterr().err
    assert not Path("rare.csv").exists()


def test_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["absent"]) == 2
    assert "Expected absent to be a folder of images, but got none there" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_to_folders_are_counted(fill: Fill, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fill({"cat": 2, "dog": 2})
    (folder / "more").symlink_to("cat")
    assert main([str(folder)]) == 0
    assert "left out: 1 link to a folder" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("what", ["folder", "class", "image"])
@pytest.mark.parametrize("output", ["rare.csv", "tables/rare.csv"])
def test_the_command_that_is_printed_reads_linked_images(
    fill: Fill, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, output: str
) -> None:
    folder, disk = fill({"cat": 2, "dog": 2}), tmp_path / "disk"
    disk.mkdir()
    if what == "folder":
        folder.rename(disk / "rare")
        folder.symlink_to(disk / "rare")
    else:
        kept = sorted((folder / "cat").iterdir())
        for image in kept if what == "class" else kept[:1]:
            image.rename(disk / image.name)
            image.symlink_to(disk / image.name)
    Path("tables").mkdir()
    assert main([str(folder), "--output", output]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    options = dict(zip(words[4::2], words[5::2], strict=True))
    keys = {key.removeprefix("--data.table."): value for key, value in options.items()}
    keys |= {"outside": True} if "outside" in keys else {}
    assert len(Table(**{"label": "label", **keys}).read(required=())) == 4
