"""CSV that is written and read again holds the same texts, also for other readers."""

import csv
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from finetune.core.csv_text import csv_writer, format_frame, format_rows, read_frame, read_rows, shield, shield_frame
from finetune.data.table.table import Table

TEXTS = {
    "a carriage return": "a\rb",
    "a line feed": "a\nb",
    "both": "a\r\nb",
    "both, the other way": "a\n\rb",
    "a carriage return at the end": "a\r",
    "a carriage return alone": "\r",
    "quotes": '"a" "" b"',
    "a comma": "a, b",
    "a tab": "\ta",
    "spaces around": "  a ",
    "nothing": "",
    "NA": "NA",
    "nan": "nan",
    "None": "None",
    "a number": "007",
    "an exponent": "1e5",
    "true": "True",
    "line separators": "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei",
    "a byte order mark": "\ufeffa",
    "another plane": "\U0001f408",
    "a backslash": "a\\\nb\\",
    "a formula": "=1+1",
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_come_back_from_rows_and_frames(name: str, tmp_path: Path) -> None:
    cells = [[TEXTS[name], "x"], ["x", TEXTS[name]], [TEXTS[name]] * 2]
    path, frame = tmp_path / "t.csv", pd.DataFrame(cells, columns=["a", "b"], dtype="str")
    for text in (format_rows(["a", "b"], cells), format_frame(frame)):
        path.write_bytes(text.encode())
        assert read_frame(path).to_numpy().tolist() == cells
        assert [[*row.values()] for row in read_rows(path)] == cells
        assert [*csv.reader(io.StringIO(text, newline=""))][1:] == cells
        assert text.endswith("\n")
    assert format_rows(["a", "b"], cells) == format_frame(frame)


def test_a_single_column_of_empty_texts_keeps_its_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(format_rows(["a"], [[""], ["x"], [""]]))
    assert [row["a"] for row in read_rows(tmp_path / "t.csv")] == ["", "x", ""]
    assert read_frame(tmp_path / "t.csv")["a"].tolist() == ["", "x", ""]
    (tmp_path / "t.csv").write_text(format_rows(["a"], []))
    assert read_rows(tmp_path / "t.csv") == []
    assert len(read_frame(tmp_path / "t.csv")) == 0


def test_a_table_reads_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    captions = [text for text in TEXTS.values() if text.strip()]
    with (tmp_path / "t.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv_writer(file)
        writer.writerow(["caption", "image"])
        writer.writerows([text, "a.png"] for text in captions)
    rows = Table(str(tmp_path / "t.csv"), caption="caption").read(required=())
    assert rows.captions.tolist() == [text.strip() for text in captions]


def test_what_needs_no_quotes_is_as_pandas_writes_it() -> None:
    frame = pd.DataFrame(
        {
            "text": ["a, b", 'c "d"', None, "e\nf"],
            "score": np.array([0.1, 1 / 3, np.nan, 1e-9], np.float32),
            "exact": [0.1, 1 / 3, np.nan, 1e-9],
            "row": [2, 3, 4, 5],
            "right": [True, False, True, True],
        }
    )
    assert format_frame(frame) == frame.to_csv(index=False, lineterminator="\n")
    assert format_frame(frame.assign(text="a\rb")).splitlines()[0] == "text,score,exact,row,right"
    assert format_frame(frame[:1].assign(text="a\rb")).endswith('\n"a\rb",0.1,0.1,2,True\n')


def test_columns_that_are_no_texts_may_be_numbers(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(format_rows(["label", "score"], [("007", 0.5), ("NA", 1.0)]))
    found = read_frame(tmp_path / "t.csv", ["label", "absent"])
    assert found["label"].tolist() == ["007", "NA"]
    assert found["score"].sum() == 1.5


def test_rows_are_written_without_pandas() -> None:
    code = "import sys, finetune.core.csv_text as c; c.format_rows(['a'], [['b']]); print('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


def test_nothing_else_writes_csv() -> None:
    root = Path(__file__).parents[2]
    files = [path for folder in ("finetune", "datasets") for path in sorted((root / folder).rglob("*.py"))]
    assert len(files) > 100
    others = [path for path in files if re.search(r"\.to_csv\(|csv\.(writer|DictWriter)\(", path.read_text("utf-8"))]
    assert others == [root / "finetune" / "core" / "csv_text.py"]


FORMULAS = [
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\uff1d1+1",
    "'=1",
    "''@a",
    "-",
    "=",
    "- a cat",
]
PLAIN = ["-5", "-0.5|0.25|-1e-05", "+.5 ; -5.", "+0.5", "1e5", "-1e-5", "a cat", "'a'", "'", "", "007", "a=b", "5-4"]


@pytest.mark.parametrize("text", FORMULAS + PLAIN)
def test_a_spreadsheet_calculates_nothing_and_every_text_comes_back(text: str, tmp_path: Path) -> None:
    shown = shield(text)
    assert shown == (f"'{text}" if text in FORMULAS else text)
    path, frame = tmp_path / "t.csv", pd.DataFrame({"a": [text, "x"], "b": [-1.5, 2]}).astype({"a": "str"})
    path.write_bytes(format_frame(shield_frame(frame)).encode())
    assert [row[0] for row in csv.reader(io.StringIO(path.read_bytes().decode(), newline=""))] == ["a", shown, "x"]
    assert read_frame(path, ["a"])["a"].tolist() == [text, "x"]
    assert read_frame(path, ["a"])["b"].tolist() == [-1.5, 2]
    path.write_bytes(format_rows(["a", "b"], [[shield(text), shield(-1.5)]]).encode())
    assert read_rows(path) == [{"a": text, "b": "-1.5"}]


def test_kinds_of_columns_stay() -> None:
    frame = pd.DataFrame({"a": pd.Categorical(["=1", "b"]), "b": [True, False], "c": [1, -2], "d": ["-1", None]})
    assert format_frame(shield_frame(frame)) == "a,b,c,d\n'=1,True,1,-1\nb,False,-2,\n"
