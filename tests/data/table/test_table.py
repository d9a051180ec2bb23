import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from finetune.data.table.table import Rows, Table

from ..tables import GOOD, HEADER, Write, captions, faults_of


def test_caption_table(write: Write, tmp_path: Path) -> None:
    rows = captions(write(HEADER, *GOOD)).read()
    assert len(rows) == 4
    assert rows.source == str(tmp_path / "table.csv")
    assert rows.images.tolist() == [str(tmp_path / name) for name in ("a.png", "b.png", "c.png", "d.png")]
    assert rows.captions.tolist() == ["a cat", "a dog", "a cat", "a cow"]
    assert rows.classes == ()
    assert rows.label_ids.tolist() == [-1] * 4
    assert rows.caption_ids[0] == rows.caption_ids[2]
    assert len(set(rows.caption_ids.tolist())) == 3
    assert len(set(rows.image_ids.tolist())) == 4
    assert [rows.indices(split).tolist() for split in ("train", "val", "test")] == [[0, 1], [3], [2]]
    assert [rows.number(row) for row in range(4)] == [2, 3, 4, 5]
    assert rows.label_ids.dtype == rows.image_ids.dtype == rows.caption_ids.dtype == np.int64


def test_label_table_has_class_names_for_captions(write: Write) -> None:
    rows = Table(str(write(HEADER, *GOOD)), label="label", split="split").read()
    assert rows.classes == ("cat", "cow", "dog")
    assert rows.label_ids.tolist() == [0, 2, 0, 1]
    assert rows.captions.tolist() == ["cat", "dog", "cat", "cow"]
    assert (rows.caption_ids == rows.label_ids).all()


def test_caption_and_label_together(write: Write) -> None:
    rows = captions(write(HEADER, *GOOD), label="label").read()
    assert rows.captions.tolist() == ["a cat", "a dog", "a cat", "a cow"]
    assert rows.label_ids.tolist() == [0, 2, 0, 1]


def test_classes_are_in_natural_order(write: Write) -> None:
    names = ["10", "9", "b2", "b10", "b", "007", "7", "a"]
    rows = Table(
        str(write(HEADER, *[("a.png", "x", name, split) for name in names for split in ("train", "test")])),
        label="label",
        split="split",
    ).read()
    assert rows.classes == ("007", "7", "9", "10", "a", "b", "b2", "b10")
    assert [rows.classes[label] for label in rows.label_ids[::2]] == names


@pytest.mark.parametrize("text", ["None", "NA", "null", "nan", "N/A", "123", "007", "true", "1e5", "-", "🐈"])
def test_cells_are_strings(write: Write, text: str) -> None:
    path = write(HEADER, ("a.png", text, text, "train"), ("b.png", "x", "y", "test"))
    rows = captions(path, label="label").read()
    assert rows.captions[0] == text
    assert rows.classes[rows.label_ids[0]] == text


def test_quoted_fields_blank_lines_and_byte_order_mark(write: Write) -> None:
    text = (
        "\ufeffimage,caption,split\r\n"
        'a.png,"a cat, sitting",train\r\n'
        "\r\n"
        'b.png,"two\r\nlines",train\r\n'
        'c.png,"says ""meow""",test\r\n'
        'd.png,a 5" ruler,test\r\n'
    )
    rows = captions(write(text=text)).read()
    assert rows.captions.tolist() == ["a cat, sitting", "two\r\nlines", 'says "meow"', 'a 5" ruler']
    assert rows.numbers.tolist() == [2, 4, 5, 6]


def test_spaces_around_texts_do_not_count(write: Write) -> None:
    rows = captions(
        write(HEADER, ("a.png", " a cat ", " cat", "train "), ("b.png", "a cat", "cat", " test")), label="label"
    ).read()
    assert rows.captions.tolist() == ["a cat", "a cat"]
    assert rows.classes == ("cat",)


def test_equal_paths_have_equal_ids(write: Write, tmp_path: Path) -> None:
    names = ["x/a.png", "./x/a.png", "x/../x/a.png", str(tmp_path / "x" / "a.png"), "y/a.png"]
    path = write(HEADER, *[(name, "c", "l", "train") for name in names], images=["x/a.png", "y/a.png"])
    rows = captions(path).read(required=())
    assert len(set(rows.image_ids[:4].tolist())) == 1
    assert rows.image_ids[4] != rows.image_ids[0]
    assert set(rows.images[:4].tolist()) == {str(tmp_path / "x" / "a.png")}


def test_images_folder_and_working_directory(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(HEADER, ("a.png", "c", "l", "train"), ("a.png", "c", "l", "test"), images=["photos/a.png"])
    monkeypatch.chdir(tmp_path)
    rows = captions(Path("table.csv"), images="photos").read()
    assert rows.images[0] == str(tmp_path / "photos" / "a.png")


def test_symbolic_links_to_files_are_files(write: Write, tmp_path: Path) -> None:
    path = write(HEADER, ("link.png", "c", "l", "train"), ("gone.png", "c", "l", "test"))
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert [(fault.row, fault.value) for fault in faults_of(captions(path))] == [(3, "gone.png")]


def test_rows_can_be_pickled(write: Write) -> None:
    rows = captions(write(HEADER, *GOOD)).read()
    copy: Rows = pickle.loads(pickle.dumps(rows))
    assert copy.images.tolist() == rows.images.tolist()
    assert copy.classes == rows.classes


def test_table_is_imported_without_torch() -> None:
    code = (
        "import sys, json; import finetune.data.table.table; "
        "print(json.dumps([name for name in ('torch', 'transformers', 'lightning', 'pandas') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == []


def test_columns_hold_no_python_object_per_row(write: Write) -> None:
    rows = captions(write(HEADER, *GOOD), label="label").read()
    for column in (rows.images, rows.captions):
        assert isinstance(column.dtype, np.dtypes.StringDType)
    for numbers in (rows.label_ids, rows.image_ids, rows.caption_ids, rows.splits, rows.numbers):
        assert numbers.dtype.kind == "i"
