from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from finetune.core.files import fingerprint_file
from finetune.data.table.table import Table

from .scripts import load_script

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


digits = load_script("digits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("digits") / "digits"
    assert digits.main(["--output", str(folder)]) == 0
    return folder


def test_rows_are_the_digits_of_scikit_learn(folder: Path) -> None:
    table = pd.read_csv(folder / "digits.csv")
    source = load_digits()
    assert list(table.columns) == ["image", "caption", "label", "split"]
    assert table["label"].tolist() == [NAMES[digit] for digit in source.target]
    assert (table["caption"] == "a handwritten digit " + table["label"]).all()
    assert {path.name for path in folder.iterdir()} == {"images", "digits.csv"}
    assert len(list((folder / "images").iterdir())) == len(table) == 1797


def test_pictures_are_black_on_white_and_still_the_digit(folder: Path) -> None:
    source = load_digits()
    for number in (0, 7, 901, 1796):
        with Image.open(folder / "images" / f"{number:04d}.png") as image:
            assert (image.mode, image.size) == ("L", (32, 32))
            grey = np.asarray(image, dtype=float)
        ink = (255 - grey.reshape(8, 4, 8, 4).mean(axis=(1, 3))) * 16 / 255
        assert np.corrcoef(ink.ravel(), source.images[number].ravel())[0, 1] > 0.98
        assert grey[:, 0].mean() > 200


def test_splits_hold_the_shares_of_each_digit(folder: Path) -> None:
    table = pd.read_csv(folder / "digits.csv")
    assert Counter(table["split"]) == {"train": 1078, "val": 180, "test": 539}
    shares = pd.crosstab(table["label"], table["split"], normalize="index")
    assert shares["train"].between(0.58, 0.62).all()
    assert shares["val"].between(0.09, 0.12).all()
    assert shares["test"].between(0.28, 0.32).all()


def test_every_run_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second replaces the first
        assert digits.main(["--output", str(tmp_path / "again")]) == 0
    for path in (folder / "digits.csv", *sorted((folder / "images").iterdir())):
        again = tmp_path / "again" / path.relative_to(folder)
        assert again.read_bytes() == path.read_bytes()
    pinned = "e5c34d7f1a6dcde25e303e30eee5d556819a5249dc5116b3e55d06fe495e57d2"
    assert fingerprint_file(folder / "digits.csv") == pinned


def test_table_reads_it(folder: Path) -> None:
    rows = Table(str(folder / "digits.csv"), label="label", split="split").read()
    assert rows.classes == tuple(sorted(NAMES))
    assert [len(rows.indices(split)) for split in ("train", "val", "test")] == [1078, 180, 539]


def test_prints_place_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits.main(["--output", str(tmp_path / "new")])
    expected = f"{tmp_path / 'new' / 'digits.csv'}: 1,797 rows (1,078 train, 180 val, 539 test)\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("foreign", ["notes.txt", "images/holiday.jpg"])
def test_foreign_folder_is_refused(foreign: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / foreign).parent.mkdir(exist_ok=True)
    (tmp_path / foreign).write_text("mine")
    assert digits.main(["--output", str(tmp_path)]) == 2
    assert "to be absent, empty or written by this command, but it holds something else" in capsys.readouterr().err
    assert (tmp_path / foreign).read_text() == "mine"
