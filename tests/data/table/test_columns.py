"""Several captions, display names, weights, image ids, and a limited number of rows."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from finetune.core.errors import RecipeError, TableError
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.row_images import hash_keys
from finetune.data.table.table import CaptionList, RandomSplit, Table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for letter in "abcdef":
        (tmp_path / f"{letter}.png").touch()
    return tmp_path


def write(folder: Path, **columns: list[str]) -> str:
    path = folder / "t.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    return str(path)


def faults_of(table: Table) -> tuple[Fault, ...]:
    with pytest.raises(TableFaultsError) as caught:
        table.read(required=())
    return caught.value.faults


# ---- several captions


def test_several_columns(folder: Path) -> None:
    path = write(folder, image=["a.png", "b.png"], c1=["one", "four"], c2=["two", ""], c3=[" three ", "five"])
    rows = Table(path, caption=("c1", "c2", "c3")).read(required=())
    assert rows.captions.tolist() == ["one", "two", "three", "four", "five"]
    assert rows.numbers.tolist() == [2, 2, 2, 3, 3]
    assert rows.image_ids.tolist() == rows.items.tolist() == [0, 0, 0, 1, 1]
    assert [Path(image).name for image in rows.images] == ["a.png"] * 3 + ["b.png"] * 2


def test_rows_without_any_caption(folder: Path) -> None:
    path = write(folder, image=["a.png", "b.png"], c1=["", "x"], c2=[" ", ""])
    assert faults_of(Table(path, caption=("c1", "c2"))) == (
        Fault(path, "a caption in one of c1, c2", "Fill it in or remove the row.", 2, "c1", ""),
    )


@pytest.mark.parametrize("columns", [(), ("a", "a")])
def test_caption_columns_are_each_named_once(columns: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError, match=r"Expected data\.table\.caption to name columns, each once, but got \["):
        Table("t.csv", caption=columns)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_lists_of_captions(folder: Path, name: str) -> None:
    captions = [["a cat", 'says "x"'], ["[not a list]"]]
    frame = pd.DataFrame({"image": ["a.png", "b.png"], "captions": captions})
    if name == "t.csv":
        frame.assign(captions=[json.dumps(texts) for texts in captions]).to_csv(folder / name, index=False)
    elif name == "t.jsonl":
        frame.to_json(folder / name, orient="records", lines=True)
    else:
        frame.to_parquet(folder / name)
    rows = Table(str(folder / name), caption=CaptionList("captions")).read(required=())
    assert rows.captions.tolist() == [text for texts in captions for text in texts]
    assert rows.items.tolist() == [0, 0, 1]


@pytest.mark.parametrize("cell", ["", "a cat", "[]", '["a", 3]', '["a", " "]', '{"a": 1}', "['a']", "[" * 5_000])
def test_cells_that_are_no_list(folder: Path, cell: str) -> None:
    path = write(folder, image=["a.png", "b.png"], captions=['["fine"]', cell])
    with pytest.raises(TableError, match=r"csv:3:captions: Expected a JSON list of captions, but got .*Write it as in"):
        Table(path, caption=CaptionList("captions")).read(required=())


def test_a_caption_column_is_taken_literally(folder: Path) -> None:
    path = write(folder, image=["a.png"], caption=['["a", "b"]'])
    assert Table(path, caption="caption").read(required=()).captions.tolist() == ['["a", "b"]']


def test_splits_and_weights_go_with_every_caption(folder: Path) -> None:
    path = write(
        folder, image=["a.png", "b.png"], c1=["x", "y"], c2=["z", ""], split=["test", "train"], weight=["0.5", "2"]
    )
    rows = Table(path, caption=("c1", "c2"), split="split", weight="weight").read()
    assert rows.splits.tolist() == [2, 2, 0]
    assert rows.weights.tolist() == [0.5, 0.5, 2.0]


# ---- image ids


def test_rows_with_one_image_id_are_one_image(folder: Path) -> None:
    path = write(
        folder,
        image=["a.png", "b.png", "a.png", "c.png"],
        caption=["1", "2", "3", "4"],
        id=["x", "y", " x", "x"],
    )
    rows = Table(path, caption="caption", image_id="id").read(required=())
    assert rows.image_ids.tolist() == rows.items.tolist() == [0, 1, 0, 0]
    assert [Path(image).name for image in rows.images] == ["a.png", "b.png", "a.png", "c.png"]
    plain = Table(path, caption="caption").read(required=())
    assert plain.image_ids.tolist() == [0, 1, 0, 2]
    assert plain.items.tolist() == [0, 1, 2, 3]
    by_path = Table(path, caption="caption", image_id="image").read(required=())
    assert by_path.items.tolist() == [0, 1, 0, 2]


def test_splits_are_drawn_by_image_id(tmp_path: Path) -> None:
    names = [f"{image}.png" for image in range(60)]
    for name in names:
        (tmp_path / name).touch()
    path = write(tmp_path, image=names, caption=names, id=[str(image // 3) for image in range(60)])
    rows = Table(path, caption="caption", image_id="id", split=RandomSplit(0.2, 0.2)).read()
    assert len(set(zip(rows.image_ids.tolist(), rows.splits.tolist(), strict=True))) == 20
    expected = RandomSplit(0.2, 0.2).draw(hash_keys(map(str, range(20)), 20, seed=0), np.zeros(20)).splits
    assert rows.splits.tolist() == np.repeat(expected, 3).tolist()
    assert set(expected.tolist()) == {0, 1, 2}


def test_empty_image_id(folder: Path) -> None:
    path = write(folder, image=["a.png", "b.png"], caption=["1", "2"], id=["x", " "])
    with pytest.raises(TableError, match=r"csv:3:id: Expected the id of an image, but got ' '\. Fill it in or remove"):
        Table(path, caption="caption", image_id="id").read(required=())


# ---- names of labels


def labelled(folder: Path, names: str, labels: list[str]) -> Table:
    (folder / "names.csv").write_text(names, encoding="utf-8")
    path = write(folder, image=["a.png"] * len(labels), label=labels)
    return Table(path, label="label", names=str(folder / "names.csv"))


def test_display_names(folder: Path) -> None:
    names = '\ufeffn01440764,tench\n\nn02, "great, white shark"\nn01, unused\n'.replace(', "', ',"')
    rows = labelled(folder, names, ["n02", "n01440764", "n02"]).read(required=())
    assert rows.classes == ("great, white shark", "tench")
    assert rows.label_ids.tolist() == [0, 1, 0]
    assert rows.captions.tolist() == ["great, white shark", "tench", "great, white shark"]


def test_names_of_integers_keep_the_order_of_the_integers(folder: Path) -> None:
    rows = labelled(folder, "0,zebra\n2,ant\n10,bee\n", ["10", "2", "0"]).read(required=())
    assert rows.classes == ("zebra", "ant", "bee")
    assert rows.label_ids.tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cat,Cat\n", r"names\.csv: Expected a name for the label 'dog', but got none\. Valid names: cat\."),
        ("cat,Cat\ndogs,Dog\n", r"Expected a name for the label 'dog', but got none\. Did you mean 'dogs'"),
        ("cat,Cat\ndog\n", r"names\.csv:2: Expected a label and its name, but got 'dog'\. Write label,name on each"),
        ("cat,Cat\ndog,\n", r"names\.csv:2: Expected a label and its name"),
        ("cat,Cat\ndog,Dog\ncat,Kitten\n", r"names\.csv:3: Expected each label once, but got 'cat'\. Remove one"),
        ("cat,pet\ndog,pet\n", r"Expected another name for each class, but got 'pet'\. Its labels are cat and dog"),
    ],
)
def test_faults_of_names(folder: Path, names: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        labelled(folder, names, ["cat", "dog"]).read(required=())


def test_names_that_are_swapped(folder: Path) -> None:
    labels = [f"n{number:08d}" for number in range(1_000)]
    lines = "".join(f"thing number {label},{label}\n" for label in labels)
    faults = faults_of(labelled(folder, lines, labels[:100]))
    assert [fault.rule for fault in faults] == [f"a name for the label {label!r}" for label in labels[:100]]
    assert {fault.repair for fault in faults} == {
        "The label stands among the names: write label,name on each line, in this order."
    }
    with pytest.raises(TableError) as caught:
        labelled(folder, lines, labels[:100]).read(required=())
    assert len(str(caught.value)) < 4_000


def test_names_without_any_of_the_labels(folder: Path) -> None:
    lines = "".join(f"{number},thing {number}\n" for number in range(1_000))
    with pytest.raises(TableError, match=r"Valid names: 0, 1, 10, .*, and 950 more\.$"):
        labelled(folder, lines, ["cat"]).read(required=())


def test_long_names(folder: Path) -> None:
    """Longer than csv reads by default."""
    long = "x" * 200_000
    assert labelled(folder, f"cat,{long}\n", ["cat"]).read(required=()).classes == (long,)


def test_names_file_missing(folder: Path) -> None:
    table = Table(write(folder, image=["a.png"], label=["x"]), label="label", names=str(folder / "nams.csv"))
    with pytest.raises(TableError, match=r"nams\.csv: Expected data\.table\.names to be a file"):
        table.read(required=())


def test_names_go_with_a_label() -> None:
    with pytest.raises(RecipeError, match=r"Expected data\.table\.names to go with data\.table\.label.*Pass --data"):
        Table("t.csv", caption="caption", names="names.csv")


# ---- weights and limits


def test_weights_reach_the_batch(colour_table: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(colour_table, dtype=str).assign(weight=[str(row / 4) for row in range(36)])
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False)
    table = Table(str(path), label="label", split="split", weight="weight", images=str(colour_table.parent))
    batch = next(iter(ImageTextDataModule(table, "align-mini", image_size=32).loader("test")))
    assert batch.weights.tolist() == [row / 4 for row in batch.rows.tolist()]


@pytest.mark.parametrize("value", ["", "much", "-1", "-1e-50", "nan", "inf", "1e39", "1,5"])
def test_weights_that_are_none(folder: Path, value: str) -> None:
    path = write(folder, image=["a.png", "b.png"], caption=["x", "y"], weight=["0", value])
    with pytest.raises(TableError, match=r"csv:3:weight: Expected a weight of 0 or more, but got .*Write a number"):
        Table(path, caption="caption", weight="weight").read(required=())


def test_no_weights_are_ones(folder: Path) -> None:
    rows = Table(write(folder, image=["a.png"], caption=["x"]), caption="caption").read(required=())
    assert rows.weights.tolist() == [1.0]
    assert rows.weights.dtype == np.float32
