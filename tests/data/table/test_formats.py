"""Every format of a table, against what pandas and pyarrow write."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.core.errors import RecipeError, TableError
from finetune.data.table.captions import CaptionList
from finetune.data.table.faults import Fault
from finetune.data.table.table import Rows, Table

from ..tables import faults_of, to_json_lines

FRAME = pd.DataFrame(
    {
        "image": ["a.png", "b.png", "c.png", "d.png"],
        "caption": ["None", 'a, "quoted"\ntext', "007", "🐈 café"],
        "label": ["NA", "1.0", "true", "NA"],
        "split": ["train", "train", "val", "test"],
    }
)
COLUMNS = {"caption": "caption", "label": "label", "split": "split"}

Write = Callable[[pd.DataFrame, Path], None]


def to_zstandard(text: str, path: Path) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(text.encode())


WRITERS: dict[str, Write] = {
    "t.csv": lambda frame, path: frame.to_csv(path, index=False),
    "t.txt": lambda frame, path: frame.to_csv(path, index=False),
    "bom.csv": lambda frame, path: frame.to_csv(path, index=False, encoding="utf-8-sig"),
    "t.tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "T.TSV": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "t.csv.gz": lambda frame, path: frame.to_csv(path, index=False),
    "t.csv.zst": lambda frame, path: to_zstandard(frame.to_csv(index=False), path),
    "t.tsv.zst": lambda frame, path: to_zstandard(frame.to_csv(index=False, sep="\t"), path),
    "t.jsonl": to_json_lines,
    "pandas.jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "t.jsonl.gz": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "t.parquet": lambda frame, path: frame.to_parquet(path),
    "groups.parquet": lambda frame, path: pq.write_table(pa.table(frame), path, row_group_size=1, compression="zstd"),
    "dictionary.parquet": lambda frame, path: frame.astype("category").to_parquet(path),
}
FIRST_ROW = {".csv": 2, ".txt": 2, ".tsv": 2, ".jsonl": 1, ".parquet": 0}


def check_rows(rows: Rows, folder: Path, frame: pd.DataFrame = FRAME) -> None:
    assert rows.images.tolist() == [str(folder / name) for name in frame["image"]]
    assert rows.captions.tolist() == frame["caption"].tolist()
    assert [rows.classes[label] for label in rows.label_ids] == frame["label"].tolist()
    assert [("train", "val", "test")[code] for code in rows.splits] == frame["split"].tolist()
    assert isinstance(rows.captions.dtype, np.dtypes.StringDType)
    assert rows.numbers.dtype == np.int64


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(name: str, folder: Path) -> None:
    path = folder / name
    WRITERS[name](FRAME, path)
    rows = Table(str(path), **COLUMNS).read()
    check_rows(rows, folder)
    kind = [suffix for suffix in path.suffixes if suffix not in (".gz", ".zst")][-1].lower()
    assert rows.numbers.tolist() == list(range(FIRST_ROW[kind], FIRST_ROW[kind] + 4))
    assert rows.files == (str(path),)
    assert rows.place(1) == f"{path}:{FIRST_ROW[kind] + 1}"


def test_data_frame(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    rows = Table(FRAME.set_index(pd.Index([7, 7, 8, 9])), **COLUMNS).read()
    check_rows(rows, folder)
    assert rows.numbers.tolist() == [0, 1, 2, 3]
    assert rows.source == "DataFrame"


def test_data_frame_with_other_types(folder: Path) -> None:
    frame = FRAME.assign(
        image=[Path(name) for name in FRAME["image"]], caption=[1, "b", None, 2.5], label=pd.Categorical(list("xyxy"))
    )
    table = Table(frame.fillna({"caption": "filled"}), images=str(folder), **COLUMNS)
    rows = table.read()
    assert rows.captions.tolist() == ["1", "b", "filled", "2.5"]
    assert rows.classes == ("x", "y")
    fault = Fault("DataFrame", "a caption", "Fill it in or remove the row.", 2, "caption", "")
    assert faults_of(Table(frame, images=str(folder), **COLUMNS)) == (fault,)


def test_data_frame_without_a_column() -> None:
    with pytest.raises(TableError, match=r"DataFrame: Expected a column 'text', but got 'image,.*Valid names"):
        Table(FRAME, caption="text").read()


def test_numbers_of_typed_files_are_written_out(folder: Path) -> None:
    frame = FRAME.assign(label=[1, 10, 9, 1], caption=[1.5, 2.0, 3.25, 1e20])
    frame.to_parquet(folder / "t.parquet")
    rows = Table(str(folder / "t.parquet"), **COLUMNS).read()
    assert rows.classes == ("1", "9", "10")
    assert [float(caption) for caption in rows.captions] == [1.5, 2.0, 3.25, 1e20]


def test_numbers_of_json_lines_keep_their_digits(folder: Path) -> None:
    lines = [
        '{"image": "a.png", "label": 1.10, "split": "train"}',
        '{"image": "b.png", "label": true, "split": "test"}',
    ]
    (folder / "t.jsonl").write_text("\n\n".join(lines))
    rows = Table(str(folder / "t.jsonl"), label="label", split="split").read()
    assert sorted(rows.classes) == ["1.10", "true"]
    assert rows.numbers.tolist() == [1, 3]


@pytest.mark.parametrize("name", ["t.jsonl", "float.parquet", "double.parquet", "half.parquet", "dictionary.parquet"])
def test_nan_is_an_empty_cell(folder: Path, name: str) -> None:
    path, labels = folder / name, [1.0, float("nan")]
    kinds = {"float": pa.float32(), "double": pa.float64(), "half": pa.float16(), "dictionary": pa.float64()}
    if path.suffix == ".jsonl":
        lines = [json.dumps({"image": "a.png", "label": label}) for label in labels]
        assert "NaN" in lines[1]
        path.write_text("\n".join(lines))
    else:
        column = pa.array(np.array(labels, np.float16 if path.stem == "half" else np.float64), kinds[path.stem])
        assert column.null_count == 0
        table = pa.table({"image": ["a.png", "b.png"], "label": column})
        pq.write_table(
            table.set_column(1, "label", column.dictionary_encode()) if path.stem == "dictionary" else table, path
        )
    row = FIRST_ROW[path.suffix] + 1
    fault = Fault(str(path), "a label", "Fill it in or remove the row.", row, "label", "")
    assert faults_of(Table(str(path), label="label")) == (fault,)


def test_infinity_of_json_lines_is_a_text(folder: Path) -> None:
    (folder / "t.jsonl").write_text('{"image": "a.png", "caption": Infinity}')
    assert Table(str(folder / "t.jsonl"), caption="caption").read(required=()).captions.tolist() == ["Infinity"]


# ---- columns of a DataFrame


def test_data_frame_with_integer_names(folder: Path) -> None:
    frame = FRAME.set_axis(range(4), axis="columns")
    check_rows(Table(frame, "0", "1", "2", split="3", images=str(folder)).read(), folder)
    assert frame.columns.tolist() == [0, 1, 2, 3]
    rows = Table(frame, "0", "1", images=str(folder), filter="image != 'x'")
    with pytest.raises(TableError, match=r"DataFrame: Expected a column 'image', but got '0,1,2,3'"):
        rows.read()
    twice = FRAME.assign(other="x").set_axis([0, 1, 2, 3, "1"], axis="columns")
    with pytest.raises(TableError, match=r"DataFrame:1: Expected each column's name once, but got '1'"):
        Table(twice, "0", "1", images=str(folder)).read()


def test_line_separators_within_json_texts(folder: Path) -> None:
    frame = FRAME.assign(caption=["a\u2028b", "c\u0085d", "e\x1ff", "g"])
    (folder / "t.jsonl").write_text(frame.to_json(orient="records", lines=True, force_ascii=False), encoding="utf-8")
    assert Table(str(folder / "t.jsonl"), **COLUMNS).read().captions.tolist() == frame["caption"].tolist()


@pytest.mark.parametrize("separator", [";", "|", "\t", " ", "~"])
def test_stated_separator(folder: Path, separator: str) -> None:
    FRAME.to_csv(folder / "t.csv", index=False, sep=separator)
    check_rows(Table(str(folder / "t.csv"), separator=separator, **COLUMNS).read(), folder)


@pytest.mark.parametrize("separator", ["", "\\t", "||", '"', "\n"])
def test_separators_that_are_none(separator: str) -> None:
    with pytest.raises(RecipeError, match=r"Expected data\.table\.separator to be one character, but got .*\.tsv"):
        Table("t.csv", caption="caption", separator=separator)


# ---- many files


def test_pattern_of_many_files(folder: Path) -> None:
    FRAME[:2].to_csv(folder / "part-0.csv", index=False)
    FRAME[2:3].to_parquet(folder / "part-1.parquet")
    to_json_lines(FRAME[3:], folder / "part-2.jsonl")
    rows = Table(str(folder / "part-*"), **COLUMNS).read()
    check_rows(rows, folder)
    names = [f"{Path(path).name}:{number}" for path, number in zip(rows.files, (2, 0, 1), strict=True)]
    assert names == ["part-0.csv:2", "part-1.parquet:0", "part-2.jsonl:1"]
    assert [Path(rows.place(row)).name for row in range(4)] == ["part-0.csv:2", "part-0.csv:3", *names[1:]]


def test_pattern_over_folders_takes_images_from_before_the_wildcard(folder: Path) -> None:
    for part in range(2):
        (folder / f"{part}").mkdir()
        FRAME[2 * part : 2 * part + 2].to_csv(folder / f"{part}" / "t.csv", index=False)
    check_rows(Table(str(folder / "*" / "t.csv"), **COLUMNS).read(), folder)
    check_rows(Table(str(folder / "**" / "*.csv"), **COLUMNS).read(), folder)


def test_a_file_whose_name_looks_like_a_pattern(folder: Path) -> None:
    FRAME.to_csv(folder / "t[1].csv", index=False)
    check_rows(Table(str(folder / "t[1].csv"), **COLUMNS).read(), folder)


def test_faults_of_all_files_are_reported_file_by_file(folder: Path) -> None:
    bad = FRAME.assign(caption=["", "x", "y", ""])
    bad.to_csv(folder / "p0.csv", index=False)
    bad.to_parquet(folder / "p1.parquet")
    places = [(Path(fault.file).name, fault.row) for fault in faults_of(Table(str(folder / "p*"), **COLUMNS))]
    assert [place for place in places if place[0] != "x"] == [
        ("p0.csv", 2), ("p0.csv", 5), ("p1.parquet", 0), ("p1.parquet", 3)
    ]  # fmt: skip


def test_columns_missing_in_some_files(folder: Path) -> None:
    FRAME.to_csv(folder / "p0.csv", index=False)
    FRAME.rename(columns={"caption": "captoin"}).to_parquet(folder / "p1.parquet")
    FRAME.rename(columns={"label": "lable"}).to_json(folder / "p2.jsonl", orient="records", lines=True)
    faults = faults_of(Table(str(folder / "p*"), **COLUMNS))
    assert [(Path(fault.file).name, fault.rule, fault.repair) for fault in faults] == [
        ("p1.parquet", "a column 'caption'", "Did you mean 'captoin'?"),
        ("p2.jsonl", "a column 'label'", "Did you mean 'lable'?"),
    ]


def test_pattern_without_files(folder: Path) -> None:
    with pytest.raises(
        TableError, match=r"Expected files that match the pattern, but got none\. No file matches it in"
    ):
        Table(str(folder / "part-*.csv"), caption="caption").read()


# ---- faults of files


def test_lines_that_are_no_objects(folder: Path) -> None:
    lines = ["[1]", '{"image": "a.png"', '"text"', '{"image": "a.png", "caption": "\\ud800"}', "[" * 5_000]
    lines.append('{"image": "a.png", "caption": "x\\u0000"}')
    (folder / "t.jsonl").write_text("\n".join([*lines, '{"image": "a.png", "caption": "c"}']))
    faults = faults_of(Table(str(folder / "t.jsonl"), caption="caption"))
    assert [(fault.row, fault.rule) for fault in faults] == [(row, "a JSON object") for row in range(1, 7)]
    with pytest.raises(TableError, match=r"jsonl:1: Expected a JSON object, but got '\[1\]'\. Write one object a line"):
        Table(str(folder / "t.jsonl"), caption="caption").read()


def test_absent_keys_are_empty_cells(folder: Path) -> None:
    (folder / "t.jsonl").write_text('{"image": "a.png", "caption": "c"}\n{"image": "b.png"}\n{"image": null}\n')
    faults = faults_of(Table(str(folder / "t.jsonl"), caption="caption"))
    assert [(fault.row, fault.column) for fault in faults] == [(2, "caption"), (3, "image"), (3, "caption")]


@pytest.mark.parametrize(("name", "content"), [("t.jsonl", ""), ("t.parquet", None)])
def test_no_rows(folder: Path, name: str, content: str | None) -> None:
    if content is None:
        FRAME[:0].to_parquet(folder / name)
    else:
        (folder / name).write_text(content)
    with pytest.raises(
        TableError, match=r"Expected a (JSON object on each line|table with rows), but got none\. Write"
    ):
        Table(str(folder / name), caption="caption").read()


@pytest.mark.parametrize(("name", "kind"), [("t.csv.gz", "gzip"), ("t.csv.zst", "zstd")])
def test_half_a_compressed_file(folder: Path, name: str, kind: str) -> None:
    text = FRAME.to_csv(index=False) * 200
    if kind == "gzip":
        (folder / name).write_bytes(gzip.compress(text.encode()))
    else:
        to_zstandard(text, folder / name)
    whole = (folder / name).read_bytes()
    for content in (whole[: len(whole) // 2], b"not compressed"):
        (folder / name).write_bytes(content)
        message = (
            f"Expected a whole file compressed with {kind}, but got '.*If it is not compressed, take {name[5:]} off"
        )
        with pytest.raises(TableError, match=message):
            Table(str(folder / name), caption="caption").read()


def test_a_span_on_this_machine_is_answered_with_the_pattern(folder: Path) -> None:
    for number in range(3):
        FRAME.to_csv(folder / f"{number:05}.csv", index=False)
    with pytest.raises(TableError, match=r"Spans name files on servers alone\. Write .*/\*\.csv"):
        Table(str(folder / "{00000..00002}.csv"), caption="caption").read()
    assert len(Table(str(folder / "*.csv"), caption="caption").read(required=())) == 3 * len(FRAME)


def test_lists_of_a_fixed_length_are_lists(folder: Path) -> None:
    captions = pa.array([["one", "two"], ["three", "four"]], pa.list_(pa.string(), 2))
    pq.write_table(pa.table({"image": ["a.png", "b.png"], "caption": captions}), folder / "t.parquet")
    rows = Table(str(folder / "t.parquet"), caption=CaptionList("caption")).read(required=())
    assert sorted(rows.captions.tolist()) == ["four", "one", "three", "two"]


def test_data_frame_with_what_arrow_cannot_hold(folder: Path) -> None:
    frame = pd.DataFrame({"image": ["a.png", "b.png"], "caption": [2**127, 2**70]}, dtype=object)
    rows = Table(frame, images=str(folder), caption="caption").read(required=())
    assert rows.captions.tolist() == [str(2**127), str(2**70)]
    frame["image"] = pd.Series(["a.png", os.fsdecode(b"\xff.png")], dtype=object)
    with pytest.raises(TableError, match=r"DataFrame: Expected texts that are UTF-8, but got .*udcff.*Rename the file"):
        Table(frame, images=str(folder), caption="caption").read(required=())


@pytest.mark.parametrize(
    ("name", "repair"), [("p.csv", "This is Parquet: name it .parquet"), ("z.csv", "let its name end in .gz or .zst")]
)
def test_names_that_hide_the_format(folder: Path, name: str, repair: str) -> None:
    if name == "p.csv":
        FRAME.to_parquet(folder / name)
    else:
        to_zstandard(FRAME.to_csv(index=False), folder / name)
    with pytest.raises(TableError, match=f"Expected (UTF-8 text|text without NUL).*{repair}"):
        Table(str(folder / name), caption="caption").read()


def test_damaged_parquet(folder: Path) -> None:
    FRAME.to_parquet(folder / "t.parquet")
    whole = (folder / "t.parquet").read_bytes()
    for content in (b"", b"no", whole[: len(whole) // 2], whole.replace(b"PAR1", b"RAP1")):
        (folder / "t.parquet").write_bytes(content)
        with pytest.raises(TableError, match="Expected a whole Parquet file of texts and numbers, but got "):
            Table(str(folder / "t.parquet"), caption="caption").read()


def test_parquet_with_images_inside(folder: Path) -> None:
    table = pa.table({"image": [{"bytes": b"x", "path": "a.png"}], "caption": ["c"]})
    pq.write_table(table, folder / "t.parquet")
    with pytest.raises(TableError, match=r"t\.parquet:image: Expected texts, numbers or lists.*Save images as files"):
        Table(str(folder / "t.parquet"), caption="caption").read()
