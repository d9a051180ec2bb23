"""The list of rows that were left out: on the screen, in a file, and back."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from finetune.data.checks.unreadable import SkippedRow, describe_skipped, read_skipped, write_skipped
from finetune.data.table.table import Table

ROWS = tuple(SkippedRow("t.csv", f"{number}", f'/photos/{number}, "a".jpg', "cut\nshort, ß") for number in range(2, 14))
CUT = (SkippedRow("t\r.csv", "20", "/photos/a\rb.jpg", "cut\r\nshort"),)
KEYS = tuple(SkippedRow("0.tar", key, f"0.tar/{key}.jpg", "cut short") for key in ("cats/abc", "000000007"))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_skipped(tmp_path / "skipped.csv", ROWS + CUT + KEYS)
    assert read_skipped(tmp_path / "skipped.csv") == ROWS + CUT + KEYS
    with (tmp_path / "skipped.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.reader(file))
    assert found[0] == ["file", "row", "image", "reason"]
    assert found[1] == ["t.csv", "2", '/photos/2, "a".jpg', "cut\nshort, ß"]


def test_nothing_is_written_where_nothing_was_left_out(tmp_path: Path) -> None:
    write_skipped(tmp_path / "skipped.csv", ())
    assert not list(tmp_path.iterdir())
    assert read_skipped(tmp_path / "skipped.csv") == ()
    assert describe_skipped(()) == []


def test_the_screen_shows_ten_where_a_file_has_all() -> None:
    lines = describe_skipped(ROWS, Path("runs/a/skipped.csv"))
    assert lines[0].startswith("skipped     12 rows, neither trained on nor measured")
    assert lines[0].endswith("; all in runs/a/skipped.csv")
    assert lines[1].startswith('  t.csv:2: /photos/2, "a".jpg: cut')
    assert len(lines) == 1 + 10 + 1
    assert lines[-1] == "  … and 2 more"
    assert len(describe_skipped(ROWS)) == 1 + 12
    assert describe_skipped(ROWS[:1])[0].startswith("skipped     1 row, ")


@pytest.mark.parametrize("kind", ["pipe", "folder", "broken link", "nul", "nothing"])
def test_a_table_is_not_held_up_by_what_is_no_file(kind: str, tmp_path: Path) -> None:
    import pandas as pd

    name = {"nul": "a\0b/c.png"}.get(kind, "x.png")
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    elif kind == "folder":
        (tmp_path / name).mkdir()
    elif kind == "broken link":
        (tmp_path / name).symlink_to("nowhere.png")
    frame = pd.DataFrame({"image": [name], "caption": ["a cat"]})
    rows, faults = Table(frame, caption="caption", images=str(tmp_path)).inspect()
    assert rows is None
    assert [(fault.row, fault.column, fault.rule) for fault in faults] == [(0, "image", "an image file")]
    assert np.all([name in str(fault.value) for fault in faults])
