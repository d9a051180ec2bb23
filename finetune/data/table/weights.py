"""Reads how much each row counts in the loss."""

import numpy as np
import numpy.typing as npt

from finetune.data.table.cells import Cells, parse_numbers
from finetune.data.table.faults import Fault


def read_weights(cells: Cells, column: str | None, faults: list[Fault]) -> npt.NDArray[np.float32]:
    """Reads the weight of each row.

    Args:
        cells: Cells that include the column.
        column: The column, or None for weights of 1.
        faults: Receives a fault for each cell that is negative or no finite number.
    """
    if column is None:
        return np.ones(len(cells), dtype=np.float32)
    parts = [parse_numbers(part.columns[column]) for part in cells.parts(column)]
    numbers, wrong = (np.concatenate(part) for part in zip(*parts, strict=True))
    with np.errstate(over="ignore"):  # numbers beyond 3e38 become infinite
        weights = numbers.astype(np.float32)
    wrong |= ~np.isfinite(weights) | (numbers < 0)
    repair = "Write a number up to 3e38, such as 1 or 0.25."
    faults += cells.faults_where(wrong, column, "a weight of 0 or more", repair)
    return weights
