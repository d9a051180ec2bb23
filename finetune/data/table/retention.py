"""Names the retention tables, which stand for other domains whose performance must be retained."""

import re
from collections.abc import Sequence
from pathlib import Path

from finetune.data.table.sources import find_folder
from finetune.data.table.table import Table

ALL_WILDCARDS = re.compile(r"(\*|\?|\[[^]]+\])+")


def name_tables(tables: Sequence[Table]) -> dict[str, Table]:
    """Names tables after their files, or after the folder where the file is all wildcards, and numbers equal names.

    Example:
        >>> paths = ("maps.csv", "a/photos.csv", "b/photos.csv", "shards/*.tar")
        >>> list(name_tables([Table(path, caption="text") for path in paths]))
        ['maps', 'photos', 'photos 2', 'shards']
    """
    named: dict[str, Table] = {}
    for table in tables:
        stem = Path(table.source).name.split(".")[0]
        if ALL_WILDCARDS.fullmatch(stem):
            stem = Path(find_folder(table.source)).name
        names = (stem, *(f"{stem} {number}" for number in range(2, len(tables) + 1)))
        named[next(name for name in names if name not in named)] = table
    return named
