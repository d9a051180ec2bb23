"""Tables, pictures and shards on disk that several files of tests share."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest

from .images import draw
from .shards import ENDINGS, sample, write_tar
from .tables import Write


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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for at, letter in enumerate("abcdef"):
        draw(tmp_path / f"{letter}.png", at)
    return tmp_path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of 10, 10 and 5 samples in the three formats that img2dataset writes, and its other files."""
    for shard, ending in enumerate(ENDINGS):
        numbers = range(shard * 10, min(shard * 10 + 10, 25))
        write_tar(tmp_path / f"{shard:05d}.tar", *(sample(number, ending=ending) for number in numbers))
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
    return tmp_path
