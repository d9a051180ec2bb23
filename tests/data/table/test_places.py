"""Where tables, images and names lie, given in Python as texts or as paths."""

from pathlib import Path, PurePosixPath

import pandas as pd
import pytest
from PIL import Image

from finetune.core.errors import RecipeError
from finetune.data.table.splits import RandomSplit
from finetune.data.table.table import Table


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Tables of their own for the splits, images in a folder, and names of labels."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "img").mkdir()
    for number in range(6):
        Image.new("RGB", (4, 4)).save(tmp_path / "img" / f"{number}.png")
    for name, numbers in (("train", (0, 1, 2)), ("val", (3,)), ("test", (4, 5))):
        lines = [f"{number}.png,n{number % 2}" for number in numbers]
        (tmp_path / f"{name}.csv").write_text("\n".join(["image,kind", *lines]) + "\n")
    (tmp_path / "names.csv").write_text("n0,cat\nn1,dog\n")
    return tmp_path


@pytest.mark.parametrize("kind", [Path, PurePosixPath])
@pytest.mark.parametrize("is_absolute", [False, True])
def test_every_path_may_be_a_path(folder, kind, is_absolute):
    def table(write) -> Table:
        split = RandomSplit(val=write("val.csv"), test=write("t*t.csv"))
        return Table(write("train.csv"), label="kind", split=split, images=write("img"), names=write("names.csv"))

    text = table(lambda name: str(folder / name) if is_absolute else name)
    path = table(lambda name: kind(folder / name) if is_absolute else kind(name))
    assert (path, hash(path.split)) == (text, hash(text.split))  # and so is what a recipe would hold
    found, expected = path.read(), text.read()
    assert found.images.tolist() == expected.images.tolist()
    assert found.splits.tolist() == [0, 0, 0, 1, 2, 2]
    assert found.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (["train.csv", "val.csv"], "2 of them"),
        ((Path("train.csv"),), "1 of them"),
        (None, "a NoneType"),
        (b"train.csv", "a bytes"),
        (7, "a int"),
    ],
)
def test_what_is_no_place_of_a_table_is_refused(source, found):
    message = rf"path to be a file, a pattern or a DataFrame, but got {found}\. Name several files by one pattern"
    with pytest.raises(RecipeError, match=message):
        Table(source, label="kind")


def test_a_frame_is_a_table_and_has_no_files_beside_it(folder):
    frame = pd.read_csv(folder / "train.csv").assign(image=lambda rows: "img/" + rows["image"])
    assert len(Table(frame, label="kind", split=RandomSplit(0.0, 0.3)).read().images) == 3
    with pytest.raises(RecipeError, match="fractions for a DataFrame, but got files"):
        Table(frame, label="kind", split=RandomSplit(val=Path("val.csv")))
