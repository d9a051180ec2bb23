"""Tables that stand for elsewhere, by name."""

from collections.abc import Sequence

from finetune.data.table import Table


def name_tables(tables: Sequence[Table]) -> dict[str, Table]:
    """Tables by the names of their files, numbered where several have one name.

    Example:
        >>> paths = ("maps.csv", "a/photos.csv", "b/photos.csv")
        >>> list(name_tables([Table(path, caption="text") for path in paths]))
        ['maps', 'photos', 'photos 2']
    """
    named: dict[str, Table] = {}
    for table in tables:
        stem = table.source.name.split(".")[0]
        names = (stem, *(f"{stem} {number}" for number in range(2, len(tables) + 1)))
        named[next(name for name in names if name not in named)] = table
    return named
