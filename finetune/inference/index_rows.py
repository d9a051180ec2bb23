"""Rows of an index: which of them a filter of their table keeps, and what they are called."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune.core.errors import RecipeError, TableError
from finetune.data.table.filters import parse_filter
from finetune.data.table.sources import TextFormat, find_files, read_cells
from finetune.inference.list_parts import Named, open_table
from finetune.inference.listing import is_table
from finetune.inference.vectors import VectorSource


def choose_rows(
    index: VectorSource, condition: str, table: Named | None, column: str, separator: str | None = None
) -> npt.NDArray[np.bool_]:
    """Returns which rows of an index a filter of their table keeps.

    An image is kept where any row that names it is; a text where its own row is.

    Args:
        index: The index.
        condition: The filter, see `Table.filter`.
        table: The table that was embedded, or the DataFrame; None where it lies as it was named then.
        column: Its column of images, or of the texts.
        separator: The character between its fields; None goes by its name.

    Raises:
        RecipeError: If the filter cannot be read, or the index is of no table.
        TableError: If the table cannot be read, or no row is kept.
    """
    facts = index.read_facts()
    words = facts.source if table is None else [table]
    tables = [word for word in words if not isinstance(word, str) or is_table(Path(word))]
    if not tables:
        raise RecipeError(
            f"Expected a table whose columns --filter compares, but got an index of {', '.join(facts.source)}. "
            "Pass --table TABLE, with the images' paths in --column."
        )
    is_image = facts.space.tower == "image"
    read = _read_images if is_image else _read_texts
    try:
        wanted = set().union(*(read(word, column, condition, separator) for word in tables))
    except (RecipeError, TableError) as error:
        kind = RecipeError if isinstance(error, RecipeError) else TableError
        raise kind(str(error).replace("data.table.filter", "--filter")) from error
    kept = [
        (value if is_image else (row, value)) in wanted
        for ids, values in index.read_names()
        for row, value in zip(ids, values, strict=True)
    ]
    if not any(kept):
        left = f"{len(wanted):,} rows of the table that meet it are not in the index" if wanted else "no row meets it"
        raise TableError(
            f"Expected --filter to keep something of {len(kept):,} vectors, but {left}: {condition}. "
            "Loosen it, or name the table that was embedded with --table."
        )
    return np.array(kept)


def take_names(index: VectorSource, rows: Collection[int]) -> dict[int, tuple[str, str]]:
    """Returns id, and path or text, of some rows.

    Args:
        index: The index.
        rows: Their positions.
    """
    wanted = sorted(set(rows))
    found: dict[int, tuple[str, str]] = {}
    start, at = 0, 0
    for ids, values in index.read_names():
        while at < len(wanted) and wanted[at] < start + len(ids):
            found[wanted[at]] = ids[wanted[at] - start], values[wanted[at] - start]
            at += 1
        start += len(ids)
    return found


def _read_images(table: Named, column: str, condition: str, separator: str | None) -> set[object]:
    return {*open_table(table, column, condition, separator)[0].images.tolist()}


def _read_texts(table: Named, column: str, condition: str, separator: str | None) -> set[object]:
    found = set[object]()
    for source in [(file,) for file in find_files(table)] if isinstance(table, str) else [table]:
        cells, _ = read_cells(source, [column], TextFormat(separator), parse_filter(condition), [])
        found |= {*zip(map(str, cells.numbers.tolist()), cells.columns[column].tolist(), strict=True)}
    return found
