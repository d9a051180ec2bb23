"""Several labels for each image: cells, names, splits, what training draws, faults."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from finetune.core.errors import RecipeError, TableError
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.rows import Rows
from finetune.data.table.table import RandomSplit, Table

CELLS = ["cat|dog", " dog | cat ", "", "emu||", "cat|cat|emu", " | ", "9|10"]
SETS = [{"cat", "dog"}, {"cat", "dog"}, set(), {"emu"}, {"cat", "emu"}, set(), {"9", "10"}]


def write(folder: Path, cells: list[str], **columns: list[str]) -> str:
    (folder / "a.png").touch()
    path = folder / "t.csv"
    pd.DataFrame({"image": ["a.png"] * len(cells), "labels": cells} | columns).to_csv(path, index=False)
    return str(path)


def read(folder: Path, cells: list[str], separator: str = "|", **options: object) -> Rows:
    return Table(write(folder, cells), label="labels", label_separator=separator, **options).read(required=())


def named(rows: Rows) -> list[set[str]]:
    return [{rows.classes[label] for label in rows.labels_of(row)} for row in range(len(rows))]


# ---- cells


def test_cells_are_sets_of_labels(tmp_path: Path) -> None:
    rows = read(tmp_path, CELLS)
    assert rows.classes == ("9", "10", "cat", "dog", "emu")
    assert named(rows) == SETS
    assert rows.captions.tolist() == ["cat|dog", "cat|dog", "", "emu", "cat|emu", "", "9|10"]
    alike = rows.caption_ids[:, None] == rows.caption_ids
    assert alike.tolist() == [[one == other for other in SETS] for one in SETS]


def test_targets_and_pairs_are_those_of_the_sets(tmp_path: Path) -> None:
    rows = read(tmp_path, CELLS)
    expected = [[name in labels for name in rows.classes] for labels in SETS]
    assert rows.targets(np.arange(7)).tolist() == expected
    assert rows.targets(np.array([4, 2, 4])).tolist() == [expected[4], expected[2], expected[4]]
    positions, labels = rows.labelled()
    assert np.stack([positions, labels]).tolist() == [list(part) for part in np.nonzero(np.array(expected))]


def test_label_ids_are_the_rarest_labels(tmp_path: Path) -> None:
    rows = read(tmp_path, CELLS)
    names = [rows.classes[label] if label >= 0 else None for label in rows.label_ids]
    assert names == ["dog", "dog", None, "emu", "emu", None, "9"]  # 3 cats, 2 dogs, 2 emus; of equals the first


@pytest.mark.parametrize(
    ("separator", "cell"),
    [(",", "cat,dog"), (" ", "cat  dog"), (", ", "cat, dog"), ("/", "dog/ cat"), ("||", "dog||cat")],
)
def test_separators(tmp_path: Path, separator: str, cell: str) -> None:
    rows = read(tmp_path, [cell, "cat"], separator)
    assert named(rows) == [{"cat", "dog"}, {"cat"}]
    assert rows.captions[0] == f"cat{separator}dog"


def test_without_a_separator_a_cell_is_one_label(tmp_path: Path) -> None:
    rows = Table(write(tmp_path, ["cat|dog", "cat"]), label="labels").read(required=())
    assert rows.classes == ("cat", "cat|dog")
    assert rows.label_sets is None
    assert [rows.labels_of(row).tolist() for row in range(2)] == [[1], [0]]
    assert rows.targets(np.arange(2)).shape == (2, 0)


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_other_formats(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.png").touch()
    records = [{"image": "a.png", "labels": "cat|dog"}, {"image": "a.png", "labels": None}]
    if name == "t.jsonl":
        (tmp_path / name).write_text("\n".join(json.dumps(record) for record in records))
    else:
        pd.DataFrame(records).to_parquet(tmp_path / name)
    rows = Table(str(tmp_path / name), label="labels", label_separator="|").read(required=())
    assert named(rows) == [{"cat", "dog"}, set()]


def test_display_names(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("c,house cat\nd,dog\ne,emu\n")
    rows = read(tmp_path, ["d|c", "c", ""], names=str(tmp_path / "names.csv"))
    assert rows.classes == ("house cat", "dog")
    assert rows.captions.tolist() == ["house cat|dog", "house cat", ""]


def test_filter_and_limit(tmp_path: Path) -> None:
    path = write(tmp_path, ["cat", "cat|dog", "", "dog|emu"] * 5, n=[str(row) for row in range(20)])
    rows = Table(path, label="labels", label_separator="|", filter="n >= 4", limit_rows=4).read(required=())
    assert len(rows) == 4
    assert min(rows.numbers.tolist()) >= 6
    assert rows.classes == ("cat", "dog", "emu")  # a row of each, by its rarest label, and one without
    assert {"cat"} in named(rows)
    assert set() in named(rows)


# ---- splits


def test_a_label_of_one_image_is_trained_on(tmp_path: Path) -> None:
    names = [f"{row}.png" for row in range(40)]
    for name in names:
        (tmp_path / name).touch()
    path = tmp_path / "t.csv"
    pd.DataFrame({"image": names, "labels": [f"all|only{row}" if row % 2 else "all" for row in range(40)]}).to_csv(path)
    rows = Table(str(path), label="labels", label_separator="|", split=RandomSplit(0.2, 0.2)).read()
    assert not rows.splits[1::2].any()
    assert rows.splits[::2].any()
    moved = np.flatnonzero(rows.splits != rows.drawn)
    assert len(moved) >= 4
    assert (moved % 2 == 1).all()


# ---- what a batch holds


def data_of(colour_table: Path, tmp_path: Path, cells: list[str], **options: object) -> ImageTextDataModule:
    frame = pd.read_csv(colour_table, dtype=str)
    frame = frame.assign(labels=(cells * len(frame))[: len(frame)])
    frame.to_csv(tmp_path / "t.csv", index=False)
    table = Table(
        str(tmp_path / "t.csv"), label="labels", label_separator="|", split="split", images=str(colour_table.parent)
    )
    return ImageTextDataModule(table, "align-mini", image_size=32, **options)


def test_a_text_names_one_of_the_labels_drawn_each_epoch(colour_table: Path, tmp_path: Path) -> None:
    data = data_of(colour_table, tmp_path, ["cat|dog|emu", "cat", "", "dog|emu"], templates=("one {}.", "a {}."))
    dataset, rows = data.dataset("train", training=True), data.rows
    drawn: dict[int, Counter[str]] = {}
    for epoch in range(60):
        for position in range(4):
            row = dataset.choices.draw(position, epoch, 0)
            name = rows.classes[dataset.label_id(row, epoch)]
            assert dataset.caption(row, epoch) in (f"one {name}.", f"a {name}.")
            drawn.setdefault(row, Counter())[name] += 1
    for row, counts in drawn.items():
        possible = named(rows)[row] or {"cat", "dog", "emu"}
        assert set(counts) == possible
        assert min(counts.values()) > 60 / len(possible) / 3
    sample = dataset[0, 3]
    assert sample.input_ids == data.texts.encode(dataset.caption(sample.row, 3))
    assert sample.label_id == dataset.label_id(sample.row, 3)


def test_evaluation_draws_the_same_each_time(colour_table: Path, tmp_path: Path) -> None:
    data = data_of(colour_table, tmp_path, ["cat|dog", ""])
    first, second = (next(iter(data.test_dataloader())) for _ in range(2))
    assert all(one.equal(other) for one, other in zip(first, second, strict=True))


def test_batches_hold_targets(colour_table: Path, tmp_path: Path) -> None:
    data = data_of(colour_table, tmp_path, ["cat|dog", "", "emu"], batch_size=5)
    for batch in data.train_dataloader():
        expected = [[name in named(data.rows)[row] for name in data.rows.classes] for row in batch.rows.tolist()]
        assert batch.targets.tolist() == expected
        assert batch.has_targets
        assert batch.truth is batch.targets
    assert data.class_prompts is not None
    assert data.kind.is_multilabel


def test_other_tables_have_no_targets(labels: ImageTextDataModule) -> None:
    batch = next(iter(labels.test_dataloader()))
    assert batch.targets.shape == (len(batch.rows), 0)
    assert not batch.has_targets
    assert batch.truth is batch.label_ids
    assert not labels.kind.is_multilabel


# ---- faults


def test_labels_without_a_name(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("cat,Cat\n")
    with pytest.raises(TableError, match=r"names\.csv: Expected a name for the label 'dog', but got none"):
        read(tmp_path, ["cat|dog"], names=str(tmp_path / "names.csv"))


def test_no_label_at_all(tmp_path: Path) -> None:
    path = write(tmp_path, ["", " | "])
    with pytest.raises(TableFaultsError) as caught:
        Table(path, label="labels", label_separator="|").read(required=())
    rule, repair = "a label in some row", "Fill in the labels that each image has."
    assert caught.value.faults == (Fault(path, rule, repair, column="labels"),)


def test_a_split_without_labels(tmp_path: Path) -> None:
    path = write(tmp_path, ["cat", "", "", ""], split=["train", "val", "test", "test"])
    with pytest.raises(
        TableFaultsError, match=r"Expected a label on a row of the split 'test', but got none\. Nothing"
    ) as caught:
        Table(path, label="labels", label_separator="|", split="split").read()
    assert [fault.rule[-6:] for fault in caught.value.faults] == [" 'val'", "'test'"]


def test_faults_keep_their_rows(tmp_path: Path) -> None:
    path = write(tmp_path, ["cat", "cat|dog"])
    Path(path).write_text(Path(path).read_text().replace("a.png,cat|dog", "b.png,cat|dog"))
    with pytest.raises(TableError, match=r"t\.csv:3:image: Expected"):
        Table(path, label="labels", label_separator="|").read(required=())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"label": "x", "label_separator": ""},
            r"label_separator to be what separates labels, but got ''\. Write it in quotes",
        ),
        ({"caption": "x", "label_separator": "|"}, r"label_separator to go with data\.table\.label, .* Pass --data"),
        (
            {"label": "x", "caption": "y", "label_separator": "|"},
            r"label_separator to go without data\.table\.caption, but got both: .* Leave out data",
        ),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=f"Expected data.table.{message}"):
        Table("t.csv", **settings)
