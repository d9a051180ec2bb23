"""What can be wrong with a table's file and its rows, all of it at once."""

import csv
import os
from pathlib import Path

import pandas as pd
import pytest

from finetune.core.errors import RecipeError, TableError
from finetune.data.table.faults import Fault
from finetune.data.table.table import Table

from ..tables import GOOD, HEADER, Write, captions, faults_of

# ---- the file


def test_neither_caption_nor_label() -> None:
    with pytest.raises(RecipeError, match=r"Expected data\.table\.caption or data\.table\.label .* got neither"):
        Table("table.csv")


def test_missing_file_names_the_nearest(write: Write, tmp_path: Path) -> None:
    write(HEADER, *GOOD)
    with pytest.raises(TableError, match=r"tabel\.csv: Expected the table to be a file.*Did you mean 'table\.csv'"):
        captions(tmp_path / "tabel.csv").read()


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"Expected the table to be a file, but got none\. Nothing is at"):
        captions(tmp_path / "no" / "table.csv").read()


def test_folder_for_a_file(tmp_path: Path) -> None:
    """Also one as Spark and Dask write for a table, beside which nothing else lies."""
    path = tmp_path / "x.parquet"
    path.mkdir()
    for folder, pattern in ((path, "x.parquet/*.parquet"), (tmp_path, f"{tmp_path.name}/*.csv")):
        with pytest.raises(TableError, match="Expected the table to be a file, but got 'folder'") as caught:
            captions(folder).read()
        assert str(caught.value).endswith(f"or all of them by the pattern {folder.parent}/{pattern}.")
    pd.DataFrame([GOOD[0], GOOD[2]], columns=HEADER).to_parquet(path / "part-0.parquet")
    (path / "a.png").touch()
    (path / "c.png").touch()
    assert len(captions(path / "*.parquet").read()) == 2


@pytest.mark.parametrize("inside", ["", "cat", "train/cat"])
def test_folder_of_images_for_a_file(tmp_path: Path, inside: str) -> None:
    """The repair names the command that lists them, with the folder around those of the classes."""
    folder = tmp_path / "rare"
    (folder / inside).mkdir(parents=True)
    (folder / inside / "1.JPG").touch()
    with pytest.raises(TableError, match="Expected the table to be a file, but got 'folder'") as caught:
        captions(folder).read()
    assert f"`finetune prepare folders {folder if inside else tmp_path}` writes one." in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_empty_file(write: Write, text: str) -> None:
    with pytest.raises(TableError, match=r"Expected a table with a header and rows, but got none\. Write a header"):
        captions(write(text=text)).read()


def test_header_alone(write: Write) -> None:
    with pytest.raises(TableError, match="Expected rows below the header, but got none"):
        captions(write(HEADER)).read()


def test_missing_columns_are_all_reported(write: Write) -> None:
    path = write(("img", "captoin", "split"), ("a.png", "x", "train"))
    faults = faults_of(captions(path))
    assert [fault.rule for fault in faults] == ["a column 'image'", "a column 'caption'"]
    assert str(faults[1]).endswith(
        "table.csv:1: Expected a column 'caption', but got 'img,captoin,split'. Did you mean 'captoin'?"
    )


@pytest.mark.parametrize(("separator", "spelt"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_other_separators(write: Write, separator: str, spelt: str) -> None:
    text = f"image{separator}caption{separator}split\na.png{separator}x{separator}train\n"
    with pytest.raises(TableError, match=f"fields seem to be separated by {spelt}"):
        captions(write(text=text)).read()


def test_duplicate_header_names(write: Write) -> None:
    path = write(("image", "caption", "caption", "split"), ("a.png", "x", "y", "train"))
    with pytest.raises(TableError, match=r"table\.csv:1:caption: Expected each column's name once.*Rename"):
        captions(path).read()


def test_not_utf8(write: Write) -> None:
    text = 'image,caption,split\na.png,"two\nlines",train\nb.png,caf\xe9,test\n'
    with pytest.raises(TableError, match=r"csv:3: Expected UTF-8 text, but got 'byte 0xe9 at position 53'\. Save"):
        captions(write(text=text.encode("latin-1"))).read()
    assert text.encode("latin-1")[53] == 0xE9


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    ("text", "row"),
    [("image,caption\n1.png,a\u00e9\u00e9", 2), ("", 1), ("image,caption\n1.png,x\n2.png,\u00e9", 3), ("im", 1)],
)
def test_not_utf8_after_a_byte_order_mark(write: Write, mark: bytes, text: str, row: int) -> None:
    content = mark + text.encode() + b"\xff\n"
    found = f"byte 0xff at position {content.index(0xFF)}"
    path = write(text=content)
    fault = Fault(str(path), "UTF-8 text", "Save the file as UTF-8 text.", row, value=found)
    assert faults_of(captions(path)) == (fault,)


def test_part_of_a_byte_order_mark(write: Write) -> None:
    with pytest.raises(TableError, match=r"csv:1: Expected UTF-8 text, but got 'byte 0xef at position 0'"):
        captions(write(text=b"\xef\xbbimage,caption,split\n")).read()


@pytest.mark.parametrize("header", ["image,caption,split", '"image","caption","split"'])
def test_a_byte_order_mark_is_no_part_of_the_header(write: Write, header: str) -> None:
    text = f"\ufeff{header}\na.png,\ufeffx,train\nb.png,y,test\n"
    assert captions(write(text=text)).read().captions.tolist() == ["\ufeffx", "y"]


def test_utf16(write: Write) -> None:
    with pytest.raises(TableError, match=r"csv:1: Expected UTF-8.*This is UTF-16: save the file as UTF-8"):
        captions(write(text="image,caption,split\n".encode("utf-16"))).read()


def test_spreadsheet(write: Write) -> None:
    with pytest.raises(TableError, match="This is a spreadsheet or an archive: export the table as CSV"):
        captions(write(text=b"PK\x03\x04\x14\x00\xff\xfe")).read()


def test_nul_characters(write: Write) -> None:
    with pytest.raises(TableError, match="csv:2: Expected text without NUL characters"):
        captions(write(text="image,caption,split\na.png,x\0y,train\n")).read()


def test_images_folder_missing(write: Write, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    path = write(HEADER, *GOOD)
    with pytest.raises(TableError, match=r"Expected data\.table\.images to be a folder.*Did you mean 'photos'"):
        captions(path, images=str(tmp_path / "fotos")).read()


# ---- rows


def test_field_counts(write: Write) -> None:
    text = "image,caption,split\na.png,a cat, sitting,train\nb.png,a dog\nc.png,x,test\nd.png,y,train\n"
    faults = faults_of(captions(write(text=text)))
    assert [(fault.row, fault.value) for fault in faults] == [(2, "a.png,a cat, sitting,train"), (3, "b.png,a dog")]
    message = r"csv:2: Expected 3 fields, as many as in the header, .*This row has 4\. Put a text that holds a comma"
    with pytest.raises(TableError, match=message):
        captions(write(text=text)).read()


def test_commas_in_every_row_do_not_shift_columns(write: Write) -> None:
    text = "image,caption,split\na.png,a cat, sitting,train\nb.png,a dog, asleep,test\n"
    assert [fault.row for fault in faults_of(captions(write(text=text)))] == [2, 3]


@pytest.mark.parametrize(
    ("line", "cause"),
    [('b.png,"a dog,train\nc.png,x,test\n', "unexpected end of data"), ('b.png,"a" dog,train\n', "',' expected")],
)
def test_wrong_quotes(write: Write, line: str, cause: str) -> None:
    text = f'image,caption,split\na.png,"two\nlines",train\n{line}'
    faults = faults_of(captions(write(text=text)))
    assert [(fault.row, fault.value) for fault in faults] == [(3, line.splitlines()[0])]
    with pytest.raises(TableError, match=f"csv:3: Expected fields quoted as in CSV.*{cause}.*not read"):
        captions(write(text=text)).read()


def test_quote_that_swallows_the_file(write: Write) -> None:
    text = 'image,caption,split\na.png,"x,train\n' + "b.png,some long caption,train\n" * 10_000
    faults = faults_of(captions(write(text=text)))
    assert [(fault.row, fault.value) for fault in faults] == [(2, 'a.png,"x,train')]


def test_long_cells(write: Write) -> None:
    """Longer than csv reads by default, also where a row is counted up to a byte that is no UTF-8."""
    limit = csv.field_size_limit()
    long = "two\nlines " * limit
    path = write(HEADER, GOOD[0], ("b.png", long, "dog", "train"), GOOD[2])
    assert captions(path).read().captions.tolist() == ["a cat", long.strip(), "a cat"]
    path.write_bytes(path.read_bytes() + b"\xff\n")
    assert [fault.row for fault in faults_of(captions(path))] == [5]
    assert csv.field_size_limit() == limit


def test_missing_image_names_the_nearest(write: Write, tmp_path: Path) -> None:
    values = ["a.jpg", "B.PNG", " c.png", "x/a.png", "zzz.png", "x\\a.png"]
    path = write(HEADER, *[(value, "c", "l", "train") for value in values], GOOD[2])
    (tmp_path / "folder.png").mkdir()
    repairs = [fault.repair for fault in faults_of(captions(path))]
    assert repairs == [
        f"No file is at {tmp_path / 'a.jpg'}. Did you mean 'a.png'?",
        f"No file is at {tmp_path / 'B.PNG'}. Did you mean 'b.png'?",
        f"No file is at {tmp_path / ' c.png'}. Did you mean 'c.png'?",
        f"{tmp_path / 'x'} is no folder that can be listed. "
        "If the images lie in another folder, name that one (--data.table.images).",
        f"No file is at {tmp_path / 'zzz.png'}.",
        f"No file is at {tmp_path}/x\\a.png. Write folders with '/'.",
    ]
    with pytest.raises(TableError, match=r"csv:2:image: Expected an image file, but got 'a\.jpg'\. No file is at"):
        captions(path).read()


def test_folder_and_pipe_are_no_images(write: Write, tmp_path: Path) -> None:
    path = write(HEADER, ("folder.png", "c", "l", "train"), ("pipe.png", "c", "l", "test"))
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert [fault.row for fault in faults_of(captions(path))] == [2, 3]


@pytest.mark.parametrize("url", ["https://example.org/a.png", "s3://bucket/a.png", "file:///tmp/a.png"])
def test_urls_are_refused(write: Write, url: str) -> None:
    path = write(HEADER, (url, "c", "l", "train"))
    with pytest.raises(TableError, match=r"on this machine, but got '.*://.*Download it first, e\.g\. with img2data"):
        captions(path).read()


@pytest.mark.parametrize("empty", ["", "   ", "\t", "\u00a0"])
@pytest.mark.parametrize(
    ("column", "rule"), [("image", "the path of an image"), ("caption", "a caption"), ("label", "a label")]
)
def test_empty_cells(write: Write, empty: str, column: str, rule: str) -> None:
    row = dict(zip(HEADER, GOOD[0], strict=True)) | {column: empty}
    path = write(HEADER, GOOD[1], tuple(row.values()), GOOD[2])
    with pytest.raises(TableError, match=f"csv:3:{column}: Expected {rule}, but got .*Fill it in or remove the row"):
        captions(path, label="label").read()


@pytest.mark.parametrize(
    ("value", "repair"),
    [
        ("validation", "Did you mean 'val'?"),
        ("Train", "Did you mean 'train'?"),
        ("training", "Did you mean 'train'?"),
        ("tst", "Did you mean 'test'?"),
        ("dev", "Did you mean 'val'?"),
        ("7", "Valid names: test, train, val."),
        ("", "Valid names: test, train, val."),
    ],
)
def test_unknown_split(write: Write, value: str, repair: str) -> None:
    path = write(HEADER, GOOD[0], ("b.png", "c", "l", value))
    fault = Fault(str(path), "train, val or test", repair, 3, "split", value)
    assert faults_of(captions(path)) == (fault,)


def test_splits_without_rows(write: Write) -> None:
    table = captions(write(HEADER, *GOOD[:2]))
    message = r"Expected rows in the split 'test', but got none\. The rows are: 2 train, 0 val, 0 test\."
    with pytest.raises(TableError, match=message):
        table.read()
    assert len(table.read(required=("train",))) == 2
    with pytest.raises(TableError, match="split 'val'"):
        table.read(required=()).require("train", "val")
    assert len(captions(write(HEADER, GOOD[0], GOOD[2])).read()) == 2


def test_all_faults_in_one_pass_and_the_first_ten_shown(write: Write) -> None:
    bad = [
        ("a.png", "", "l", "train"),
        ("nope.png", "c", "l", "train"),
        ("a.png", "c", "l", "trian"),
        ("a.png", "c", "train"),
        ("nope.png", "", "l", "x"),
    ]
    table = captions(write(HEADER, *bad, *[("a.png", "", "l", "train")] * 2_000))
    faults = faults_of(table)
    assert len(faults) == 4 + 3 + 2_000
    assert [fault.row for fault in faults[:8]] == [2, 3, 4, 5, 6, 6, 6, 7]
    with pytest.raises(TableError) as caught:
        table.read()
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "… and 1,997 more; `finetune check` lists all."
