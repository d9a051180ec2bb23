"""A small sound table, and how it is read."""

from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.data.faults import Fault, TableFaultsError
from finetune.data.table import Table

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
