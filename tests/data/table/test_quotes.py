"""Quotes that enclose a text, quotes that are part of one, and quotes that swallow rows."""

import csv
import gzip
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from jsonargparse import ArgumentParser

from finetune.core.errors import RecipeError, TableError
from finetune.data.table.table import Table

from ..tables import faults_of, to_json_lines

ROWS = 24
Row = tuple[str, str, str]


def table(path: Path, **settings: str) -> Table:
    return Table(str(path), caption="caption", split="split", **settings)  # type: ignore[arg-type]


def rows_with(texts: dict[int, str]) -> list[Row]:
    splits = ["test" if row % 4 == 3 else "train" for row in range(ROWS)]
    return [(f"{row}.png", texts.get(row, f"text {row}"), split) for row, split in enumerate(splits)]


def join(rows: Sequence[Row], separator: str, order: Sequence[int] = (0, 1, 2)) -> str:
    lines = [("image", "caption", "split"), *rows]
    return "".join(separator.join(line[at] for at in order) + "\n" for line in lines)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for row in range(ROWS):
        (tmp_path / f"{row}.png").touch()
    return tmp_path


SWALLOWING = {
    "three rows on": {3: '"To be or not', 6: 'that is the question"'},
    "the next row": {3: '"To be', 4: 'or not"'},
    "rows with doubled quotes between": {3: '"To be', 4: '""', 5: 'or not"'},
    "rows with commas between": {3: '"To be', 4: "a, b", 5: "c", 6: 'or not"'},
}


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 2, 0), (2, 1, 0)])
@pytest.mark.parametrize("name", SWALLOWING)
def test_rows_between_two_lone_quotes_are_refused_and_not_swallowed(
    folder: Path, name: str, order: tuple[int, ...]
) -> None:
    texts = SWALLOWING[name]
    if name == "rows with commas between" and order[-1] == 1:
        texts = {**texts, 3: '"To be'}
    (folder / "t.csv").write_text(join(rows_with(texts), ",", order))
    first, *_ = faults_of(table(folder / "t.csv"))
    assert (first.row, first.rule) == (5, "a text that ends before the next row")
    assert first.value is not None
    assert '"To be' in first.value
    assert first.column == ("caption" if order[-1] == 1 or order == (0, 1, 2) else first.column)
    assert "Double the quote" in first.repair
    assert "--data.table.quoting none" in first.repair


@pytest.mark.parametrize("separator", [";", "|", ","])
def test_every_row_is_read_or_the_table_refused(folder: Path, separator: str) -> None:
    (folder / "t.csv").write_text(join(rows_with(SWALLOWING["three rows on"]), separator))
    with pytest.raises(TableError, match=r"t\.csv:5:caption: Expected a text that ends before the next row.*3 lines"):
        table(folder / "t.csv", separator=separator).read()
    rows = table(folder / "t.csv", separator=separator, quoting="none").read()
    assert len(rows) == ROWS
    assert rows.captions[3] == '"To be or not'
    assert rows.captions[6] == 'that is the question"'
    assert len(table(folder / "t.csv", separator=separator, quoting="minimal").read()) == ROWS - 3


def test_a_compressed_file_is_refused_alike_and_json_lines_have_no_such_quotes(folder: Path) -> None:
    rows = rows_with(SWALLOWING["three rows on"])
    (folder / "t.csv.gz").write_bytes(gzip.compress(join(rows, ",").encode()))
    assert faults_of(table(folder / "t.csv.gz"))[0].rule == "a text that ends before the next row"
    to_json_lines(pd.DataFrame(rows, columns=["image", "caption", "split"]), folder / "t.jsonl")
    assert table(folder / "t.jsonl").read().captions[3] == '"To be or not'


@pytest.mark.parametrize("quote", ['"', '"x', 'x,"'])
def test_a_lone_quote_at_the_end_is_refused(folder: Path, quote: str) -> None:
    text = "image,split,caption\n0.png,train,a\n1.png,test,b\n2.png,train," + quote
    (folder / "t.csv").write_text(text)
    message = r"t\.csv:4: Expected fields quoted as in CSV.*pass --data\.table\.quoting none"
    with pytest.raises(TableError, match=message):
        table(folder / "t.csv").read()


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("images", ["{}.png", "{}", "sub folder/{}"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_long_texts_of_several_lines_are_one_text(folder: Path, order: tuple[int, int], images: str, ends: str) -> None:
    """Texts with as many separators in a line as a row has, images without an extension, quotes as csv writes them."""
    texts = [
        f"A dog, running.{ends}In a park, with a ball.",
        f"one{ends}two, three{ends}four, five{ends}six",
        f'He said: "no, {ends}never, no"',
        f"{ends}, {ends}",
        f"version 1.5, of photo.png{ends}it has, a tail",
    ]
    lines = [(images.format(row), text) for row, text in enumerate(texts)]
    (folder / "sub folder").mkdir()
    for image, _ in lines:
        (folder / image).touch()
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=ends).writerows(
        [line[at] for at in order] for line in [("image", "caption"), *lines]
    )
    (folder / "t.csv").write_bytes(file.getvalue().encode())
    rows = Table(str(folder / "t.csv"), caption="caption").read(required=())
    assert rows.captions.tolist() == [text.strip() for text in texts]


# ---- spaces before quotes


@pytest.mark.parametrize("space", [" ", "  ", "\t", "\u00a0"])
@pytest.mark.parametrize("text", ['"x, y"', '"x"', '"x ""y"" z"', '"x" or y'])
def test_a_space_before_a_quote_is_refused_and_named(folder: Path, space: str, text: str) -> None:
    (folder / "t.csv").write_text(f"image,caption,split\n0.png,{space}{text},train\n1.png,z,test\n")
    (fault,) = faults_of(table(folder / "t.csv"))
    assert (fault.row, fault.column, fault.rule) == (2, "caption", "a quote right after the separator")
    assert fault.repair.startswith("Remove the spaces before the quote.")


def test_a_space_before_a_quote_inside_a_quoted_text_is_none(folder: Path) -> None:
    texts = ['He said, "hi, you"', ' "hi" is a word', 'a 5" ruler', 'so "it" is']
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("image", "caption"), *((f"{row}.png", text) for row, text in enumerate(texts))])
    (folder / "t.csv").write_text(file.getvalue(), newline="")
    rows = Table(str(folder / "t.csv"), caption="caption").read(required=())
    assert rows.captions.tolist() == [text.strip() for text in texts]


@pytest.mark.parametrize("text", ["'x, y'", "\u201cx, y\u201d", "\u00abx, y\u00bb", "\u201ex, y\u201c"])
def test_quotes_that_are_none_in_csv_are_named(folder: Path, text: str) -> None:
    (folder / "t.csv").write_text(f"image,caption,split\n0.png,{text},train\n1.png,z,test\n")
    with pytest.raises(TableError, match=r'This row has 4\. Only straight double quotes, .* enclose a text: ,"…"'):
        table(folder / "t.csv").read()


def test_a_carriage_return_that_ends_a_row_is_named(folder: Path) -> None:
    (folder / "t.csv").write_bytes(b"image,caption,split\n0.png,two\rlines,train\n1.png,z,test\n")
    faults = faults_of(table(folder / "t.csv"))
    assert [(fault.row, fault.repair) for fault in faults] == [
        (row, "This row has 2. A carriage return ends a row: put the text that holds it in double quotes.")
        for row in (2, 3)
    ]
    (folder / "t.csv").write_bytes(b"image,caption,split\r0.png,x,train\r1.png,z,test\r2.png,x\r")
    (fault,) = faults_of(table(folder / "t.csv"))
    assert (fault.row, fault.repair) == (4, "This row has 2.")


# ---- tabs


@pytest.mark.parametrize(
    "texts",
    [
        {3: '"To be" or not'},
        {3: '"" by person'},
        {3: '"To be or not', 6: 'that is the question"'},
        {3: ' "To be"', 6: '"x'},
        {23: '"'},
    ],
)
@pytest.mark.parametrize("name", ["t.tsv", "t.tsv.gz", "t.txt"])
def test_tabs_without_quoting_keep_every_row_and_quote(folder: Path, name: str, texts: dict[int, str]) -> None:
    rows = rows_with(texts)
    text = join(rows, "\t").encode()
    (folder / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    read = table(folder / name, **({"separator": "\t"} if name == "t.txt" else {})).read()
    assert read.captions.tolist() == [text.strip() for _, text, _ in rows]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_tabs_with_quoting_as_pandas_writes_them(folder: Path, quoting: int) -> None:
    texts = {3: 'He said "hi"', 4: '"hi"', 5: "two\nlines", 6: "a\tb", 7: "a\r\nb", 8: "a, b"}
    frame = pd.DataFrame(rows_with(texts), columns=["image", "caption", "split"])
    frame.to_csv(folder / "t.tsv", sep="\t", index=False, quoting=quoting)  # type: ignore[call-overload]
    assert table(folder / "t.tsv").read().captions.tolist() == frame["caption"].tolist()


def test_tabs_that_fit_neither_way_are_refused(folder: Path) -> None:
    """A line has too few fields, so nothing says that quotes are characters; stated, only that line is wrong."""
    rows = [*rows_with({3: '"To be" or not'}), ("x.png", "y")]
    (folder / "t.tsv").write_text("".join("\t".join(row) + "\n" for row in [("image", "caption", "split"), *rows]))
    with pytest.raises(TableError, match=r"t\.tsv:5: Expected fields quoted.* pass --data\.table\.quoting none"):
        table(folder / "t.tsv").read()
    assert [fault.row for fault in faults_of(table(folder / "t.tsv", quoting="none"))] == [ROWS + 2]


# ---- the key, and the file of names


@pytest.mark.parametrize("word", ["minimal", "none", "null"])
def test_quoting_on_the_command_line(word: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Table, "table")
    words = ["--table.path", "t.csv", "--table.label", "label", "--table.quoting", word]
    found = parser.instantiate(parser.parse_args(words)).table.quoting
    assert found == (None if word == "null" else word)


@pytest.mark.parametrize("word", ["all", "None", ""])
def test_quoting_that_is_no_word(word: str) -> None:
    with pytest.raises(RecipeError, match=r"Expected data\.table\.quoting to be null, minimal or none, but got '"):
        Table("t.csv", caption="caption", quoting=word)  # type: ignore[arg-type]


@pytest.mark.parametrize("lines", ['x,"a\ny,b"\nz,c\n', 'x, "a"\ny,b\n', 'x,a\ny,"b\n'])
def test_names_of_labels_between_lone_quotes_are_refused(folder: Path, lines: str) -> None:
    (folder / "t.csv").write_text("image,label\n0.png,x\n1.png,x\n")
    (folder / "names.csv").write_text(lines)
    with pytest.raises(TableError, match=r"names\.csv:\d: Expected (a label and its name|fields quoted as in CSV)"):
        Table(str(folder / "t.csv"), label="label", names=str(folder / "names.csv")).read(required=())
