"""A small sound table, and how it is read."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.table import Table

Write = Callable[..., Path]
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


def to_json_lines(frame: pd.DataFrame, path: Path) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in frame.to_dict("records")))
