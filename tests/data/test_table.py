import csv
import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from jsonargparse import ArgumentParser

from finetune.data.faults import Fault, TableFaultsError
from finetune.data.table import RandomSplit, Rows, Table
from finetune.errors import RecipeError, TableError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows with csv.writer (or raw text), and a file for each image named."""

    def write(*rows: Sequence[str], text: str | bytes | None = None, images: Sequence[str] = ()) -> Path:
        path = tmp_path / "table.csv"
        if text is None:
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(rows)
        else:
            path.write_bytes(text.encode() if isinstance(text, str) else text)
        for name in images or [f"{letter}.png" for letter in "abcdef"]:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        return path

    return write


HEADER = ("image", "caption", "label", "split")
GOOD = [
    ("a.png", "a cat", "cat", "train"),
    ("b.png", "a dog", "dog", "train"),
    ("c.png", "a cat", "cat", "test"),
    ("d.png", "a cow", "cow", "val"),
]


def captions(path: Path, **settings: object) -> Table:
    return Table(str(path), caption="caption", **({"split": "split"} | settings))  # type: ignore[arg-type]


def faults_of(table: Table) -> tuple[Fault, ...]:
    with pytest.raises(TableFaultsError) as caught:
        table.read()
    return caught.value.faults


def test_caption_table(write: Write, tmp_path: Path) -> None:
    rows = captions(write(HEADER, *GOOD)).read()
    assert len(rows) == 4
    assert rows.source == tmp_path / "table.csv"
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


# ---- faults: the file


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
    with pytest.raises(TableError, match="Expected the table to be a file, but got 'folder'"):
        captions(tmp_path).read()


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_empty_file(write: Write, text: str) -> None:
    with pytest.raises(TableError, match=r"Expected a table with a header and rows, but got none\. Write a header"):
        captions(write(text=text)).read()


def test_header_alone(write: Write) -> None:
    with pytest.raises(TableError, match="Expected rows below the header, but got none"):
        captions(write(HEADER)).read()


def test_missing_columns_are_all_told(write: Write) -> None:
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


# ---- faults: rows


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


def test_missing_image_names_the_nearest(write: Write, tmp_path: Path) -> None:
    values = ["a.jpg", "B.PNG", " c.png", "x/a.png", "zzz.png", "x\\a.png"]
    path = write(HEADER, *[(value, "c", "l", "train") for value in values], GOOD[2])
    (tmp_path / "folder.png").mkdir()
    repairs = [fault.repair for fault in faults_of(captions(path))]
    assert repairs == [
        f"No file is at {tmp_path / 'a.jpg'}. Did you mean 'a.png'?",
        f"No file is at {tmp_path / 'B.PNG'}. Did you mean 'b.png'?",
        f"No file is at {tmp_path / ' c.png'}. Did you mean 'c.png'?",
        f"{tmp_path / 'x'} is no folder that can be listed.",
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
    fault = Fault(str(path), 3, "split", value, "train, val or test", repair)
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


# ---- random splits


def draw(count: int, classes: int, split: RandomSplit) -> np.ndarray:
    return split.draw([f"{image}.png" for image in range(count)], np.arange(count) % classes)


def test_fractions_hold_overall_and_in_each_class() -> None:
    codes = draw(1_000, 7, RandomSplit(val=0.1, test=0.2))
    assert np.bincount(codes).tolist() == [700, 100, 200]
    for label in range(7):
        train, val, test = np.bincount(codes[np.arange(1_000) % 7 == label], minlength=3) / (1_000 / 7)
        assert (train, val, test) == pytest.approx((0.7, 0.1, 0.2), abs=0.015)


def test_small_classes_keep_an_image_for_training() -> None:
    for size in (2, 3, 4):
        codes = draw(100 * size, 100, RandomSplit(val=0.1, test=0.3))
        labels = np.arange(100 * size) % 100
        assert set(labels[codes == 0].tolist()) == set(range(100))
        assert np.bincount(codes)[1:].tolist() == [10 * size, 30 * size]


def test_draw_is_the_same_for_every_order_and_follows_the_seed() -> None:
    paths = np.array([f"{image}.png" for image in range(200)])
    labels = np.arange(200) % 3
    order = np.random.default_rng(0).permutation(200)
    codes = RandomSplit().draw(paths.tolist(), labels)
    assert (RandomSplit().draw(paths[order].tolist(), labels[order]) == codes[order]).all()
    assert (RandomSplit(seed=1).draw(paths.tolist(), labels) != codes).any()


def test_draw_without_labels_by_hand() -> None:
    paths = [f"{image}.png" for image in range(10)]
    ranked = sorted(paths, key=lambda path: blake2b(f"3\0{path}".encode(), digest_size=8).digest())
    codes = RandomSplit(val=0.1, test=0.1, seed=3).draw(paths, np.zeros(10, dtype=np.int64))
    found = {path: int(code) for path, code in zip(paths, codes, strict=True)}
    # Of the nine after the first, two evenly spaced ones: positions 9/4 and 27/4, rounded down.
    assert [found[path] for path in ranked] == [0, 0, 0, 1, 0, 0, 0, 2, 0, 0]


def test_draw_does_not_change_between_releases() -> None:
    codes = draw(40, 4, RandomSplit(val=0.1, test=0.2, seed=0))
    assert "".join(map(str, codes)) == PINNED


PINNED = "0220111100000000000200000002202020000200"


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
        assert [len(rows.indices(split)) for split in ("train", "val", "test")] == [200, 25, 25]
        drawn.append(rows.splits.tolist())
    assert drawn[0] == drawn[1]


def test_one_image_has_no_test_split(write: Write) -> None:
    with pytest.raises(TableError, match="Expected rows in the split 'test'"):
        Table(str(write(HEADER, GOOD[0])), caption="caption").read()


def test_no_validation_asked_for() -> None:
    assert set(draw(50, 2, RandomSplit(val=0.0, test=0.2)).tolist()) == {0, 2}


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.1), (0.1, 1.0)])
def test_fractions_out_of_range(val: float, test: float) -> None:
    with pytest.raises(RecipeError, match=r"Expected split\.\w+ to be a fraction from 0 to below 1"):
        RandomSplit(val=val, test=test)


def test_fractions_leave_nothing() -> None:
    with pytest.raises(RecipeError, match=r"Expected split\.val \+ split\.test to be below 1, but got 0\.6 \+ 0\.5"):
        RandomSplit(val=0.6, test=0.5)


# ---- as recipe keys, and at scale


@pytest.mark.parametrize(
    ("given", "split"),
    [(["--table.split", "fold"], "fold"), (["--table.split.val", "0.2"], RandomSplit(val=0.2)), ([], RandomSplit())],
)
def test_keys_of_a_recipe(given: list[str], split: str | RandomSplit) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Table, "table")
    config = parser.parse_args(["--table.path", "t.csv", "--table.label", "kind", *given])
    assert parser.instantiate(config).table == Table("t.csv", label="kind", split=split)
    again = parser.parse_string(parser.dump(config))
    assert parser.instantiate(again).table == Table("t.csv", label="kind", split=split)


def test_table_is_imported_without_torch() -> None:
    code = (
        "import sys, json; import finetune.data.table; "
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
