"""How large the parts of a table may be: more than any table needs, and less than memory holds."""

from collections.abc import Iterator

import numpy as np

from finetune.data.table.cells import Cells
from finetune.data.table.faults import Fault

MOST_COLUMNS = 20_000
MOST_CHARACTERS = 10_000_000
"""In a cell, some thousand pages of text; models read some dozens of words."""
MOST_BYTES = 16 << 20
"""Of a line of JSON, or of a text in a tar."""
LARGEST_RATIO, ANY_RATIO = 100, 256 << 20
"""How many times its size a file may become when it is decompressed, beyond so many bytes; tables become ten times."""


def check_width(file: str, row: int | None, count: int) -> list[Fault]:
    """Returns a fault if a table has more than `MOST_COLUMNS` columns.

    Args:
        file: The table's file.
        row: The header's row, if the file has a header.
        count: How many columns it has.
    """
    if count <= MOST_COLUMNS:
        return []
    rule, repair = f"at most {MOST_COLUMNS:,} columns", "Keep the columns that the recipe names."
    return [Fault(file, rule, repair, row, value=f"{count:,} columns")]


def find_long_cells(cells: Cells) -> Iterator[Fault]:
    """Yields a fault for each cell of more than `MOST_CHARACTERS` characters.

    Args:
        cells: The table's cells.
    """
    rule, repair = f"at most {MOST_CHARACTERS:,} characters", "Shorten the text or remove the row."
    for part in cells.parts():
        for name, column in part.columns.items():
            for fault in part.faults_where(np.strings.str_len(column) > MOST_CHARACTERS, name, rule, repair):
                yield fault._replace(value=f"{len(fault.value or ''):,} characters")


def may_become(size: int, length: int) -> bool:
    """Whether a file may have so many bytes when it is decompressed.

    Args:
        size: Number of bytes of the compressed file.
        length: Number of bytes that were read of it.
    """
    return length <= max(ANY_RATIO, LARGEST_RATIO * size)
