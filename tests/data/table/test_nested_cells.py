"""Lists and objects in cells where one text is expected, in every format that can hold them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.core.errors import TableError
from finetune.data.table.table import Table

from ..tables import faults_of, to_json_lines

FIRST_ROW = {".jsonl": 1, ".parquet": 0}


def lists(folder: Path, name: str, column: str, cells: list[object]) -> Table:
    frame = pd.DataFrame({"image": [f"{letter}.png" for letter in "abcdef"[: len(cells)]], column: cells})
    path = folder / name
    if path.suffix == ".jsonl":
        to_json_lines(frame, path)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    source = frame if name == "frame" else str(path)
    return Table(source, images=str(folder), **{column: column})


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet", "frame"])
@pytest.mark.parametrize(
    ("column", "repair"),
    [
        ("caption", "Set data.table.caption to {json_list: caption}, or write one text."),
        ("label", "Write its labels as one text, cat|dog, with data.table.label_separator '|'."),
    ],
)
def test_lists_are_no_captions_or_labels(folder: Path, name: str, column: str, repair: str) -> None:
    faults = faults_of(lists(folder, name, column, [["a", "b"], None, ["c, d"], []]))
    first = FIRST_ROW.get(Path(name).suffix, 0)
    assert [(fault.row, fault.column, fault.value, fault.rule) for fault in faults] == [
        (first, column, '["a", "b"]', "a text"),
        (first + 1, column, "", f"a {column}"),
        (first + 2, column, '["c, d"]', "a text"),
        (first + 3, column, "[]", "a text"),
    ]
    assert {fault.repair for fault in faults if fault.rule == "a text"} == {repair}


def test_lists_are_no_labels_where_these_are_separated(folder: Path) -> None:
    table = replace(lists(folder, "t.parquet", "label", [["cat", "dog"], ["cow"]]), label_separator="/")
    with pytest.raises(TableError, match=r"parquet:0:label: Expected a text, but got .*one text, cat/dog, with"):
        table.read()


def test_lists_of_labels_are_not_looked_up_in_the_names(folder: Path) -> None:
    (folder / "names.csv").write_text("cat,house cat\n")
    table = replace(lists(folder, "t.parquet", "label", [["cat", "dog"], ["cat"]]), names=str(folder / "names.csv"))
    assert [(fault.row, fault.rule) for fault in faults_of(table)] == [(0, "a text"), (1, "a text")]


def test_lists_in_one_of_several_columns_of_captions(folder: Path) -> None:
    table = pa.table({"image": ["a.png"], "caption": ["a cat"], "more": [["a", "b"]]})
    pq.write_table(table, folder / "t.parquet")
    message = r"parquet:0:more: Expected a text, but got .*Set data\.table\.caption to \{json_list: more\}, or write"
    with pytest.raises(TableError, match=message):
        Table(str(folder / "t.parquet"), caption=("caption", "more")).read()


def test_objects_and_texts_beside_lists(folder: Path) -> None:
    """A text that looks like a list stays the caption it is where the column holds no list."""
    table = lists(folder, "t.jsonl", "caption", ["a cat", {"en": "a dog"}, "[sic] a cow"])
    assert [(fault.row, fault.value) for fault in faults_of(table)] == [(2, '{"en": "a dog"}')]
    table = lists(folder, "t.jsonl", "caption", ["a cat", '["a", "b"]', "{c}"])
    assert table.read(required=()).captions.tolist() == ["a cat", '["a", "b"]', "{c}"]


def test_lists_in_one_of_many_files(folder: Path) -> None:
    lists(folder, "p0.jsonl", "caption", ["a cat"])
    lists(folder, "p1.parquet", "caption", [["a", "b"]])
    lists(folder, "p2.jsonl", "caption", ["a cow"])
    faults = faults_of(Table(str(folder / "p*"), caption="caption"))
    assert [(Path(fault.file).name, fault.row) for fault in faults] == [("p1.parquet", 0)]


def test_lists_that_a_filter_or_no_key_reads(folder: Path) -> None:
    path = folder / "t.jsonl"
    records = [{"image": "a.png", "caption": ["a", "b"], "n": 1}, {"image": "b.png", "caption": "c", "n": 2}]
    path.write_text("\n".join(json.dumps(record | {"tags": ["x"]}) for record in records))
    assert Table(str(path), caption="caption", filter="n > 1").read(required=()).captions.tolist() == ["c"]
    path = folder / "t.parquet"
    pq.write_table(pa.table({"image": ["a.png"], "caption": ["c"], "tags": [["x"]]}), path)
    assert Table(str(path), caption="caption").read(required=()).captions.tolist() == ["c"]


def test_data_frame_that_mixes_lists_and_texts(folder: Path) -> None:
    for cell in (["a", "b"], ("a", "b"), np.array(["a", "b"])):
        table = lists(folder, "frame", "caption", [cell, "c"])
        with pytest.raises(TableError, match=r"DataFrame: Expected columns of texts and numbers.*Convert them first"):
            table.read()
